//! Writing out marked loops.
//!
//! lavapipe does not unroll a loop with a large body and then indexes private arrays through
//! memory. Each copy of the body is a block that starts with `const i = 3u;`, so that every index
//! made of loop counters is a constant expression, and names stay local to their copy.

use std::collections::HashMap;

use super::constant::evaluate;

/// The lines with every loop that follows `//@unroll` written out.
pub(super) fn unroll(
    lines: &[String],
    values: &HashMap<String, u32>,
) -> Result<Vec<String>, String> {
    let mut out = Vec::with_capacity(lines.len());
    expand(lines, values, &mut out)?;
    Ok(out)
}

fn expand(
    lines: &[String],
    values: &HashMap<String, u32>,
    out: &mut Vec<String>,
) -> Result<(), String> {
    let mut at = 0;
    while at < lines.len() {
        if lines[at].trim() != "//@unroll" {
            out.push(lines[at].clone());
            at += 1;
            continue;
        }
        let head = lines
            .get(at + 1)
            .ok_or("//@unroll at the end of the file")?;
        let (counter, bound) = loop_head(head).ok_or_else(|| {
            format!("//@unroll needs `for (var i = 0u; i < N; i++) {{`, not: {head}")
        })?;
        let count = evaluate(bound, values)?;
        let body_start = at + 2;
        let body_end = closing_line(lines, body_start)
            .ok_or_else(|| format!("the loop is never closed: {head}"))?;
        let body = &lines[body_start..body_end];
        if body.iter().any(|line| leaves_the_loop(line)) {
            return Err(format!(
                "break, continue or return in an unrolled loop: {head}"
            ));
        }
        for i in 0..count {
            out.push("{".into());
            out.push(format!("const {counter} = {i}u;"));
            // Bounds of loops within may depend on this counter.
            let mut inner = values.clone();
            inner.insert(counter.to_owned(), i);
            expand(body, &inner, out)?;
            out.push("}".into());
        }
        at = body_end + 1;
    }
    Ok(())
}

/// Counter and bound of `for (var i = 0u; i < BOUND; i++) {`.
fn loop_head(line: &str) -> Option<(&str, &str)> {
    let rest = line.trim().strip_prefix("for (var ")?;
    let (counter, rest) = rest.split_once(" = 0u; ")?;
    let rest = rest.strip_prefix(counter)?.strip_prefix(" < ")?;
    let (bound, rest) = rest.split_once("; ")?;
    let rest = rest.strip_prefix(counter)?;
    (rest == "++) {").then_some((counter, bound))
}

/// The line with the brace that closes a block whose first line is `start`.
fn closing_line(lines: &[String], start: usize) -> Option<usize> {
    let mut depth = 1usize;
    for (number, line) in lines.iter().enumerate().skip(start) {
        let code = line.split("//").next().unwrap_or_default();
        for c in code.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.checked_sub(1)?,
                _ => {}
            }
            if depth == 0 {
                // The brace must stand alone, so that dropping its line drops nothing else.
                return (code.trim() == "}").then_some(number);
            }
        }
    }
    None
}

fn leaves_the_loop(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["break", "continue", "return"].iter().any(|word| {
        code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|w| w == *word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, values: &[(&str, u32)]) -> Result<String, String> {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let values = values.iter().map(|&(k, v)| (k.to_owned(), v)).collect();
        unroll(&lines, &values).map(|lines| lines.join("\n"))
    }

    #[test]
    fn nested_loops_are_written_out() {
        let text = "//@unroll\nfor (var i = 0u; i < N; i++) {\n//@unroll\nfor (var j = 0u; j < i + 1u; j++) {\nf(i, j);\n}\n}\nrest";
        let out = run(text, &[("N", 2)]).expect("unrolls");
        assert_eq!(out.matches("f(i, j);").count(), 3);
        assert_eq!(out.matches("const j = 1u;").count(), 1);
        assert!(out.ends_with("rest"));
        assert_eq!(out.matches('{').count(), out.matches('}').count());
    }

    #[test]
    fn plain_loops_stay() {
        let text = "for (var i = 0u; i < N; i++) {\nf(i);\n}";
        assert_eq!(run(text, &[("N", 2)]).as_deref(), Ok(text));
    }

    #[test]
    fn what_cannot_be_unrolled_is_an_error() {
        for text in [
            "//@unroll",
            "//@unroll\nfor (var i = 1u; i < N; i++) {\n}",
            "//@unroll\nfor (var i = 0u; i < M; i++) {\n}",
            "//@unroll\nfor (var i = 0u; i < N; i++) {\nf();",
            "//@unroll\nfor (var i = 0u; i < N; i++) {\nif (x) { break; }\n}",
            "//@unroll\nfor (var i = 0u; i < N; i++) {\nf(); }",
        ] {
            assert!(run(text, &[("N", 2)]).is_err(), "{text}");
        }
    }
}
