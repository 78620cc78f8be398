//! The value of `const NAME: u32 = ...;` at module level: whole numbers, + - * / %, brackets and
//! `min(a, b)`.

use std::collections::HashMap;

/// All module constants of type u32 that whole-number arithmetic gives.
pub(super) fn module_constants(lines: &[String]) -> Result<HashMap<String, u32>, String> {
    let mut values = HashMap::new();
    for line in lines {
        let Some(rest) = line.strip_prefix("const ") else {
            continue;
        };
        let Some((name, rest)) = rest.split_once(": u32 =") else {
            continue;
        };
        let Some((expression, _)) = rest.split_once(';') else {
            return Err(format!("a constant must end on its line: {line}"));
        };
        values.insert(name.trim().to_owned(), evaluate(expression, &values)?);
    }
    Ok(values)
}

/// The value of an expression over known constants.
pub(super) fn evaluate(text: &str, known: &HashMap<String, u32>) -> Result<u32, String> {
    let mut parser = Parser {
        rest: text.trim(),
        known,
    };
    let value = parser.sum()?;
    if parser.rest.is_empty() {
        Ok(value)
    } else {
        Err(format!("cannot read `{}` in `{text}`", parser.rest))
    }
}

struct Parser<'a> {
    rest: &'a str,
    known: &'a HashMap<String, u32>,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, symbol: char) -> bool {
        match self.rest.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Result<u32, String> {
        let mut value = self.product()?;
        loop {
            let next = if self.eat('+') {
                value.checked_add(self.product()?)
            } else if self.eat('-') {
                value.checked_sub(self.product()?)
            } else {
                return Ok(value);
            };
            value = next.ok_or("a constant leaves u32")?;
        }
    }

    fn product(&mut self) -> Result<u32, String> {
        let mut value = self.atom()?;
        loop {
            let next = if self.eat('*') {
                value.checked_mul(self.atom()?)
            } else if self.eat('/') {
                value.checked_div(self.atom()?)
            } else if self.eat('%') {
                value.checked_rem(self.atom()?)
            } else {
                return Ok(value);
            };
            value = next.ok_or("a constant leaves u32")?;
        }
    }

    fn word(&mut self) -> &'a str {
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        word
    }

    fn atom(&mut self) -> Result<u32, String> {
        if self.eat('(') {
            let value = self.sum()?;
            return if self.eat(')') {
                Ok(value)
            } else {
                Err("a bracket is never closed".into())
            };
        }
        let word = self.word();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let digits = word.trim_end_matches('u');
            match digits.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => digits.parse(),
            }
            .map_err(|_| format!("`{word}` is no whole number"))
        } else if word == "min" && self.eat('(') {
            let first = self.sum()?;
            if !self.eat(',') {
                return Err("min takes two numbers".into());
            }
            let second = self.sum()?;
            if self.eat(')') {
                Ok(first.min(second))
            } else {
                Err("a bracket is never closed".into())
            }
        } else {
            self.known
                .get(word)
                .copied()
                .ok_or_else(|| format!("`{word}` is no constant"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_as_in_wgsl() {
        let known = HashMap::from([("ROWS".to_owned(), 4), ("D4".to_owned(), 16)]);
        for (text, value) in [
            ("7u", 7),
            ("0xff800000u", 0xff80_0000),
            ("ROWS * D4 + 1u", 65),
            ("(ROWS * D4 + 8u - 1u) / 8u", 8),
            ("2u * (3u + 4u) % 5u", 4),
            ("10u - 3u - 2u", 5),
            ("min(ROWS + 1u, D4) * 2u", 10),
            ("min(D4, min(3u, 2u))", 2),
        ] {
            assert_eq!(evaluate(text, &known), Ok(value), "{text}");
        }
        for text in [
            "",
            "X",
            "1u +",
            "(1u",
            "1u / 0u",
            "1u - 2u",
            "1u 2u",
            "4294967295u + 1u",
            "min(1u)",
            "min(1u, 2u",
            "min",
        ] {
            assert!(evaluate(text, &known).is_err(), "{text}");
        }
    }
}
