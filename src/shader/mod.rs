//! From a kernel's file to final WGSL: link the shared files, choose the code of a variant, set
//! its constants, unroll the marked loops.
//!
//! The files in `shaders/` are plain WGSL with six kinds of mark in comments:
//!
//! - `//@import NAME` takes in `shaders/shared/NAME.wgsl`, once;
//! - `//@if NAME`, `//@if !NAME`, `//@else`, `//@endif` keep or drop lines;
//! - `const NAME: u32 = 4u; //@variant` is a number that the variant sets;
//! - `//@unroll` before a `for (var i = 0u; i < BOUND; i++)` writes the body out, once per `i`;
//!   `//@unroll NAME` and `//@unroll !NAME` do so where `//@if` would keep lines;
//! - `//@mods` is where the variant's functions from outside go, if it has any;
//! - `enable ...;` may stand anywhere and moves to the top.
//!
//! A name that the variant does not give, and a number that it gives in vain, are errors.

mod constant;
pub mod mods;
mod unroll;

use std::collections::BTreeMap;

/// The numbers of a variant by the names that its WGSL file uses; flags are 0 or 1.
pub type Constants = Vec<(&'static str, u32)>;

/// A storage or uniform binding of a shader, read from its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Number in group 0.
    pub index: u32,
    /// Name of the variable.
    pub name: String,
    /// Whether it is the uniform with the parameters.
    pub uniform: bool,
    /// Whether the shader may write to it.
    pub writable: bool,
}

/// Final WGSL and what it binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shader {
    /// The text.
    pub wgsl: String,
    /// The bindings, by rising number.
    pub bindings: Vec<Binding>,
}

/// Makes the final text of a kernel.
///
/// # Errors
/// What is wrong with the file or the variant, with the line.
pub fn build(
    source: &str,
    constants: &[(&'static str, u32)],
    mods: &str,
) -> Result<Shader, String> {
    let given: BTreeMap<&str, u32> = constants.iter().copied().collect();
    let mut linker = Linker {
        given: &given,
        mods,
        used: Vec::new(),
        imported: Vec::new(),
        enables: Vec::new(),
        lines: Vec::new(),
    };
    linker.take_in(source)?;
    for name in given.keys() {
        if !linker.used.iter().any(|used| used == name) {
            return Err(format!(
                "the variant sets {name}, which the file never uses"
            ));
        }
    }
    let values = constant::module_constants(&linker.lines)?;
    let lines = unroll::unroll(&linker.lines, &values)?;
    let bindings = bindings(&lines)?;
    let mut wgsl = linker.enables.join("\n");
    wgsl.push('\n');
    for line in lines {
        wgsl.push_str(&line);
        wgsl.push('\n');
    }
    Ok(Shader { wgsl, bindings })
}

/// The files in `shaders/shared/`.
const SHARED: &[(&str, &str)] = &[
    (
        "attention",
        include_str!("../../shaders/shared/attention.wgsl"),
    ),
    (
        "attention_pairs",
        include_str!("../../shaders/shared/attention_pairs.wgsl"),
    ),
    (
        "attention_scores",
        include_str!("../../shaders/shared/attention_scores.wgsl"),
    ),
    (
        "attention_tensors",
        include_str!("../../shaders/shared/attention_tensors.wgsl"),
    ),
    (
        "attention_vectors",
        include_str!("../../shaders/shared/attention_vectors.wgsl"),
    ),
    (
        "attention_visibility",
        include_str!("../../shaders/shared/attention_visibility.wgsl"),
    ),
    (
        "features",
        include_str!("../../shaders/shared/features.wgsl"),
    ),
    ("grid", include_str!("../../shaders/shared/grid.wgsl")),
    (
        "mass_scale",
        include_str!("../../shaders/shared/mass_scale.wgsl"),
    ),
    (
        "order_digits",
        include_str!("../../shaders/shared/order_digits.wgsl"),
    ),
    (
        "order_keys",
        include_str!("../../shaders/shared/order_keys.wgsl"),
    ),
    (
        "linear_tensors",
        include_str!("../../shaders/shared/linear_tensors.wgsl"),
    ),
    (
        "route_mass",
        include_str!("../../shaders/shared/route_mass.wgsl"),
    ),
    ("route", include_str!("../../shaders/shared/route.wgsl")),
    (
        "route_scores",
        include_str!("../../shaders/shared/route_scores.wgsl"),
    ),
    (
        "scan_slots",
        include_str!("../../shaders/shared/scan_slots.wgsl"),
    ),
    (
        "scan_state",
        include_str!("../../shaders/shared/scan_state.wgsl"),
    ),
    (
        "online_softmax",
        include_str!("../../shaders/shared/online_softmax.wgsl"),
    ),
    (
        "selection",
        include_str!("../../shaders/shared/selection.wgsl"),
    ),
    ("sigmoid", include_str!("../../shaders/shared/sigmoid.wgsl")),
    (
        "softmax_rows",
        include_str!("../../shaders/shared/softmax_rows.wgsl"),
    ),
];

struct Linker<'a> {
    given: &'a BTreeMap<&'a str, u32>,
    mods: &'a str,
    used: Vec<String>,
    imported: Vec<String>,
    enables: Vec<String>,
    lines: Vec<String>,
}

impl Linker<'_> {
    fn take_in(&mut self, source: &str) -> Result<(), String> {
        // One entry per open `//@if`: whether its lines are kept.
        let mut kept: Vec<bool> = Vec::new();
        for (number, line) in source.lines().enumerate() {
            let fail = |message: String| Err(format!("line {}: {message}", number + 1));
            let text = line.trim();
            if let Some(condition) = text.strip_prefix("//@if ") {
                match self.holds(condition) {
                    Ok(holds) => kept.push(holds),
                    Err(message) => return fail(message),
                }
            } else if text == "//@else" {
                match kept.last_mut() {
                    Some(keep) => *keep = !*keep,
                    None => return fail("//@else without //@if".into()),
                }
            } else if text == "//@endif" {
                if kept.pop().is_none() {
                    return fail("//@endif without //@if".into());
                }
            } else if kept.contains(&false) {
            } else if let Some(condition) = text.strip_prefix("//@unroll ") {
                match self.holds(condition) {
                    Ok(true) => self.lines.push("//@unroll".into()),
                    Ok(false) => {}
                    Err(message) => return fail(message),
                }
            } else if text == "//@mods" {
                self.lines.extend(self.mods.lines().map(str::to_owned));
            } else if let Some(name) = text.strip_prefix("//@import ") {
                self.import(name.trim())?;
            } else if text.starts_with("enable ") {
                if !self.enables.iter().any(|enable| enable == text) {
                    self.enables.push(text.into());
                }
            } else if let Some(definition) = line.strip_suffix("//@variant") {
                match self.variant_constant(definition) {
                    Some(line) => self.lines.push(line),
                    None => return fail(format!("the variant does not set: {definition}")),
                }
            } else {
                self.lines.push(line.into());
            }
        }
        if kept.is_empty() {
            Ok(())
        } else {
            Err("an //@if is never closed".into())
        }
    }

    /// Whether a flag, `NAME` or `!NAME`, is as a mark wants it.
    fn holds(&mut self, condition: &str) -> Result<bool, String> {
        let (name, wanted) = match condition.trim().strip_prefix('!') {
            Some(name) => (name, false),
            None => (condition.trim(), true),
        };
        match self.value(name) {
            Some(value) => Ok((value != 0) == wanted),
            None => Err(format!("the variant does not say {name}")),
        }
    }

    fn value(&mut self, name: &str) -> Option<u32> {
        self.used.push(name.into());
        self.given.get(name).copied()
    }

    fn variant_constant(&mut self, definition: &str) -> Option<String> {
        let name = definition
            .trim()
            .strip_prefix("const ")?
            .split(':')
            .next()?;
        let value = self.value(name.trim())?;
        Some(format!("const {}: u32 = {value}u;", name.trim()))
    }

    fn import(&mut self, name: &str) -> Result<(), String> {
        if self.imported.iter().any(|done| done == name) {
            return Ok(());
        }
        self.imported.push(name.into());
        match SHARED.iter().find(|(shared, _)| *shared == name) {
            Some((_, text)) => self
                .take_in(text)
                .map_err(|message| format!("shared/{name}: {message}")),
            None => Err(format!("there is no shared file {name}")),
        }
    }
}

fn bindings(lines: &[String]) -> Result<Vec<Binding>, String> {
    let mut list = Vec::new();
    for line in lines {
        let Some(rest) = line.trim().strip_prefix("@group(0) @binding(") else {
            continue;
        };
        let fail = || format!("a binding that cannot be read: {line}");
        let (index, rest) = rest.split_once(')').ok_or_else(fail)?;
        let (space, rest) = rest
            .trim()
            .strip_prefix("var<")
            .and_then(|rest| rest.split_once('>'))
            .ok_or_else(fail)?;
        let (name, _) = rest.split_once(':').ok_or_else(fail)?;
        list.push(Binding {
            index: index.parse().map_err(|_| fail())?,
            name: name.trim().into(),
            uniform: space == "uniform",
            writable: space.contains("read_write"),
        });
    }
    list.sort_by_key(|binding| binding.index);
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
//@if HALF
enable f16;
//@endif
const ROWS: u32 = 1u; //@variant
const PAIRS: u32 = (ROWS + 1u) / 2u;
//@if HALF
@group(0) @binding(1) var<storage, read> a: array<f16>; // [n]
//@else
@group(0) @binding(1) var<storage, read> a: array<f32>; // [n]
//@endif
@group(0) @binding(0) var<uniform> params: Params;
fn f() {
    //@unroll
    for (var i = 0u; i < PAIRS; i++) {
        x[i] = 1.0;
    }
}
";

    #[test]
    fn a_variant_chooses_lines_numbers_and_copies() {
        let shader = build(FILE, &[("HALF", 1), ("ROWS", 4)], "").expect("builds");
        assert!(shader.wgsl.starts_with("enable f16;\n"));
        assert!(shader.wgsl.contains("const ROWS: u32 = 4u;"));
        assert!(shader.wgsl.contains("array<f16>"));
        assert!(!shader.wgsl.contains("array<f32>"));
        assert!(shader.wgsl.contains("const i = 0u;"));
        assert!(shader.wgsl.contains("const i = 1u;"));
        assert!(!shader.wgsl.contains("const i = 2u;"));
        let names: Vec<_> = shader
            .bindings
            .iter()
            .map(|b| (b.index, b.name.as_str(), b.uniform, b.writable))
            .collect();
        assert_eq!(names, [(0, "params", true, false), (1, "a", false, false)]);
    }

    #[test]
    fn a_variant_chooses_what_is_unrolled() {
        let file = "//@unroll !SMALL\nfor (var i = 0u; i < 2u; i++) {\nf(i);\n}\n";
        let calls = |small| {
            let shader = build(file, &[("SMALL", small)], "").expect("builds");
            assert!(!shader.wgsl.contains("//@unroll"));
            shader.wgsl.matches("f(i);").count()
        };
        assert_eq!((calls(0), calls(1)), (2, 1));
        assert!(build(file, &[], "").is_err());
    }

    #[test]
    fn names_that_do_not_match_are_errors() {
        let fails = |constants: &[(&'static str, u32)]| build(FILE, constants, "").unwrap_err();
        assert!(fails(&[("ROWS", 1)]).contains("HALF"));
        assert!(fails(&[("HALF", 0)]).contains("ROWS"));
        assert!(fails(&[("HALF", 0), ("ROWS", 1), ("COLS", 1)]).contains("COLS"));
        assert!(build("//@if A\n", &[("A", 1)], "").is_err());
        assert!(build("//@else\n", &[], "").is_err());
        assert!(build("//@import nothing\n", &[], "").is_err());
    }
}
