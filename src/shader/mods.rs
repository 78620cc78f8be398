//! Callers' WGSL ([`Mod`]), checked and linked into text that attention's kernels take in.

mod check;
mod text;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{LazyLock, Mutex, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    error::{Error, Result},
    ops::{Mod, Slot},
    tensor::DType,
};
use check::{HOOKS, Hook};
use text::Fault;

/// Bytes of all sources together.
const MAX_BYTES: usize = 64 << 10;
/// Mods of one op.
const MAX_MODS: usize = 16;
/// The binding of the first buffer in the kernels.
const FIRST_BINDING: usize = 17;

/// Linked text, or none: part of the variant of an attention kernel.
///
/// A handle on text that lives as long as the process, as pipelines do: each list of sources and buffers is
/// checked and linked once. Two handles are equal when their lists are.
#[derive(Clone, Copy, Default)]
pub struct Mods(Option<&'static Linked>);

struct Linked {
    parts: Vec<Part>,
    text: String,
    hooks: [bool; HOOKS.len()],
    buffers: usize,
}

/// What a [`Mod`] changes in the text of a kernel: its source, and the buffers without their layouts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    source: String,
    buffers: Vec<Buffer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Buffer {
    name: String,
    dtype: DType,
}

/// All texts so far, by the hash of their parts.
static LINKED: LazyLock<Mutex<HashMap<u64, Vec<&'static Linked>>>> = LazyLock::new(Mutex::default);

impl Mods {
    /// Checks and links the text of mods, in their order. Cheap when the same have been linked before.
    ///
    /// # Errors
    /// [`Error::Invalid`] for text that is no valid WGSL, or more than plain functions, with the place in it.
    pub fn link(mods: &[Mod]) -> Result<Self> {
        let parts = mods
            .iter()
            .map(|change| Part {
                source: change.source.clone(),
                buffers: change
                    .buffers
                    .iter()
                    .map(|buffer| Buffer {
                        name: buffer.name.clone(),
                        dtype: buffer.layout.dtype,
                    })
                    .collect(),
            })
            .collect();
        Self::intern(parts)
    }

    fn intern(parts: Vec<Part>) -> Result<Self> {
        if parts.is_empty() {
            return Ok(Self(None));
        }
        let mut hasher = DefaultHasher::new();
        parts.hash(&mut hasher);
        let hash = hasher.finish();
        let find = |table: &HashMap<u64, Vec<&'static Linked>>| {
            let list = table.get(&hash)?;
            list.iter().copied().find(|linked| linked.parts == parts)
        };
        let table = || LINKED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(linked) = find(&table()) {
            return Ok(Self(Some(linked)));
        }
        let linked = Linked::new(&parts)?;
        let mut table = table();
        // Another thread may have linked the same by now: equal lists must be one handle.
        if let Some(linked) = find(&table) {
            return Ok(Self(Some(linked)));
        }
        let linked: &'static Linked = Box::leak(Box::new(Linked { parts, ..linked }));
        table.entry(hash).or_default().push(linked);
        Ok(Self(Some(linked)))
    }

    /// WGSL for the kernels: bindings, the functions that read them, the mods' own, and those below, each when
    /// some mod defines its part. It needs `params` with `buffer_0_at` to `buffer_3_at`, `valid_keys(batch)`
    /// and `valid_queries(batch)`.
    ///
    /// ```wgsl
    /// fn mods_score(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32
    /// fn mods_visible(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool
    /// fn mods_prob(weight: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32
    /// fn mods_keys(batch: u32, head: u32, q_index: u32) -> vec2<u32>
    /// ```
    pub fn text(self) -> &'static str {
        self.0.map_or("", |linked| &linked.text)
    }

    /// Whether some mod defines `score_mod`.
    pub fn has_score(self) -> bool {
        self.has(&check::SCORE)
    }

    /// Whether some mod defines `mask_mod`.
    pub fn has_mask(self) -> bool {
        self.has(&check::MASK)
    }

    /// Whether some mod defines `prob_mod`.
    pub fn has_prob(self) -> bool {
        self.has(&check::PROB)
    }

    /// Whether some mod defines `key_range`.
    pub fn has_range(self) -> bool {
        self.has(&check::RANGE)
    }

    /// Buffers of all mods.
    pub fn buffers(self) -> usize {
        self.0.map_or(0, |linked| linked.buffers)
    }

    fn has(self, hook: &Hook) -> bool {
        self.0.is_some_and(|linked| {
            HOOKS
                .iter()
                .zip(linked.hooks)
                .any(|(candidate, has)| has && candidate.name == hook.name)
        })
    }

    fn parts(&self) -> &'static [Part] {
        self.0.map_or(&[], |linked| &linked.parts)
    }
}

impl PartialEq for Mods {
    fn eq(&self, other: &Self) -> bool {
        match (self.0, other.0) {
            (Some(a), Some(b)) => std::ptr::eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

impl Eq for Mods {}

impl Hash for Mods {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl PartialOrd for Mods {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Mods {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.parts().cmp(other.parts())
    }
}

impl fmt::Debug for Mods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("Mods(none)"),
            // The whole text is too long where variants are printed.
            Some(linked) => {
                let sum = crc32fast::hash(linked.text.as_bytes());
                write!(f, "Mods({} mods, {sum:08x})", linked.parts.len())
            }
        }
    }
}

impl Serialize for Mods {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.parts().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Mods {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::intern(Vec::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Linked {
    /// The text of `parts`; the parts themselves are left to the caller.
    fn new(parts: &[Part]) -> Result<Self> {
        let buffers: usize = parts.iter().map(|part| part.buffers.len()).sum();
        if buffers > Slot::BUFFERS.len() {
            return Err(Error::unsupported(
                format!("mods with {buffers} buffers"),
                format!("at most {} are bound", Slot::BUFFERS.len()),
                "put several arrays into one buffer, at offsets",
            ));
        }
        let bytes: usize = parts.iter().map(|part| part.source.len()).sum();
        if bytes > MAX_BYTES || parts.len() > MAX_MODS {
            return Err(Error::invalid(
                "mods",
                format!("{} mods of {bytes} bytes", parts.len()),
                format!(
                    "give at most {MAX_MODS} of {MAX_BYTES} bytes in all, and large tables as buffers"
                ),
            ));
        }
        let mut text = String::new();
        let mut hooks = [false; HOOKS.len()];
        // For each hook, the mods that define it.
        let mut defined: [Vec<usize>; HOOKS.len()] = Default::default();
        let mut first = 0;
        for (number, part) in parts.iter().enumerate() {
            let checked = part.check(number)?;
            part.write(number, first, &checked, &mut text);
            first += part.buffers.len();
            for ((hook, has), mods) in HOOKS.iter().zip(&mut hooks).zip(&mut defined) {
                if checked.functions.iter().any(|name| name == hook.name) {
                    *has = true;
                    mods.push(number);
                }
            }
        }
        write_wrappers(&defined, &mut text);
        // A net under the renaming: what comes out must be valid as well.
        check::module(&format!("{text}{}", surroundings())).map_err(|fault| {
            Error::invalid(
                "mods",
                format!("text that is not valid once linked: {}", fault.message),
                "give functions and constants names of their own",
            )
        })?;
        Ok(Self {
            parts: Vec::new(),
            text,
            hooks,
            buffers,
        })
    }
}

/// What the kernels give to linked text.
fn surroundings() -> String {
    let fields: String = (0..Slot::BUFFERS.len())
        .map(|n| format!("buffer_{n}_at: u32, "))
        .collect();
    format!(
        "struct Params {{ {fields} }}\n@group(0) @binding(0) var<uniform> params: Params;\n{LENGTHS}"
    )
}

const LENGTHS: &str = "fn valid_keys(batch: u32) -> u32 { return batch; }
fn valid_queries(batch: u32) -> u32 { return batch; }
";

/// A uniform as every kernel has one, since compilers look at types more closely where there is one. A caller's
/// text cannot name it.
const UNIFORM: &str = "struct mod_Params { at: u32 }
@group(0) @binding(0) var<uniform> mod_params: mod_Params;
";

/// The functions that the kernels give to callers' text.
const GIVEN: [&str; 2] = ["valid_keys", "valid_queries"];

/// A part that passed, ready to be renamed.
struct Checked {
    text: String,
    functions: Vec<String>,
}

impl Part {
    fn check(&self, number: usize) -> Result<Checked> {
        self.check_buffers(number)?;
        self.check_source().map_err(|fault| {
            let mut found = String::new();
            if let Some((line, column, quoted)) = fault.at.and_then(|at| quote(&self.source, at)) {
                found = format!("line {line}, column {column}, `{quoted}`: ");
            }
            found.push_str(&fault.message);
            Error::invalid(format!("mods[{number}].source"), found, fault.remedy)
        })
    }

    fn check_buffers(&self, number: usize) -> Result<()> {
        for (place, buffer) in self.buffers.iter().enumerate() {
            let name = &buffer.name;
            let fail = |why: &str| {
                Err(Error::invalid(
                    format!("mods[{number}].buffers[{place}].name"),
                    format!("`{}` {why}", name.escape_debug()),
                    "give a name of its own, of ASCII letters, digits and underscores",
                ))
            };
            let mut bytes = name.bytes();
            let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
            if !bytes.next().is_some_and(letter)
                || !bytes.all(|b| letter(b) || b.is_ascii_digit())
                || name == "_"
            {
                return fail("is no identifier");
            }
            if name.len() > 64 {
                return fail("is longer than 64 letters");
            }
            if name.starts_with("mod_") || name.starts_with("__") {
                return fail("begins like names that are taken");
            }
            if check::is_wgsl_name(name) {
                return fail("is a name of WGSL itself");
            }
            if GIVEN.contains(&name.as_str()) || HOOKS.iter().any(|hook| hook.name == name) {
                return fail("is a function's name");
            }
            if self.buffers[..place]
                .iter()
                .any(|before| before.name == *name)
            {
                return fail("is there twice");
            }
            if element(buffer.dtype).is_none() {
                return Err(Error::invalid(
                    format!("mods[{number}].buffers[{place}].layout"),
                    format!("elements are {}", buffer.dtype),
                    "give f32 or u32",
                ));
            }
        }
        Ok(())
    }

    fn check_source(&self) -> Result<Checked, Fault> {
        let text = text::without_comments(&self.source)?;
        let tokens = text::tokens(&text);
        let (declared, _) = text::declarations(&text, &tokens);
        for declaration in &declared {
            if GIVEN.contains(&declaration.name) {
                return Err(Fault::at(
                    declaration.at,
                    format!("`{}` is a function that foveate gives", declaration.name),
                    "choose another name",
                ));
            }
            if self
                .buffers
                .iter()
                .any(|buffer| buffer.name == declaration.name)
            {
                return Err(Fault::at(
                    declaration.at,
                    format!("`{}` is the name of a buffer too", declaration.name),
                    "rename one of the two",
                ));
            }
        }
        check::check_words(&text, &tokens, &declared)?;
        let mut whole = format!("{text}\n{LENGTHS}{UNIFORM}");
        for buffer in &self.buffers {
            let element = element(buffer.dtype).unwrap_or("f32");
            let name = &buffer.name;
            // Writing to a String cannot fail.
            let _ = writeln!(
                whole,
                "fn {name}(index: u32) -> {element} {{ return {element}(index); }}"
            );
        }
        check::check_module(&check::module(&whole)?)?;
        let functions = declared
            .iter()
            .filter(|declaration| declaration.keyword == "fn")
            .map(|declaration| declaration.name.to_owned())
            .collect();
        Ok(Checked { text, functions })
    }

    /// Writes bindings, their functions and the text, under names that begin with the mod's number.
    fn write(&self, number: usize, first: usize, checked: &Checked, out: &mut String) {
        let tokens = text::tokens(&checked.text);
        let (declared, members) = text::declarations(&checked.text, &tokens);
        let names: BTreeMap<&str, String> = declared
            .iter()
            .map(|declaration| declaration.name)
            .chain(self.buffers.iter().map(|buffer| buffer.name.as_str()))
            .map(|name| (name, format!("mod_{number}_{name}")))
            .collect();
        for (n, Buffer { name, dtype }) in (first..).zip(&self.buffers) {
            let element = element(*dtype).unwrap_or("f32");
            let binding = FIRST_BINDING + n;
            let _ = write!(
                out,
                "@group(0) @binding({binding}) var<storage, read> buffer_{n}: array<{element}>; // {name}
fn mod_{number}_{name}(index: u32) -> {element} {{
    return buffer_{n}[params.buffer_{n}_at + index];
}}
"
            );
        }
        let text = text::renamed(&checked.text, &tokens, &members, &names);
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            // Constants at the very start of a line are foveate's own, which it computes.
            let _ = writeln!(out, "    {}", line.trim_end());
        }
    }
}

/// The WGSL type of a buffer's elements.
fn element(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("f32"),
        DType::U32 => Some("u32"),
        DType::F16 | DType::Bool => None,
    }
}

/// The functions that kernels call: score and prob in a chain, mask as "and", range as what all leave.
fn write_wrappers(defined: &[Vec<usize>; HOOKS.len()], out: &mut String) {
    const PLACE: &str = "batch: u32, head: u32, q_index: u32";
    let [score, mask, prob, range] = defined;
    for (mods, name, hook, value) in [
        (score, "mods_score", check::SCORE.name, "score"),
        (prob, "mods_prob", check::PROB.name, "weight"),
    ] {
        if mods.is_empty() {
            continue;
        }
        let chain = mods.iter().fold(value.to_owned(), |inner, number| {
            format!("mod_{number}_{hook}({inner}, batch, head, q_index, kv_index)")
        });
        let _ = writeln!(
            out,
            "fn {name}({value}: f32, {PLACE}, kv_index: u32) -> f32 {{\n    return {chain};\n}}"
        );
    }
    if !mask.is_empty() {
        let all: Vec<String> = mask
            .iter()
            .map(|number| format!("mod_{number}_mask_mod(batch, head, q_index, kv_index)"))
            .collect();
        let all = all.join(" && ");
        let _ = writeln!(
            out,
            "fn mods_visible({PLACE}, kv_index: u32) -> bool {{\n    return {all};\n}}"
        );
    }
    if !range.is_empty() {
        let _ = writeln!(
            out,
            "fn mods_keys({PLACE}) -> vec2<u32> {{\n    var keys = vec2<u32>(0u, 0xffffffffu);"
        );
        for number in range {
            let _ = writeln!(
                out,
                "    let keys_{number} = mod_{number}_key_range(batch, head, q_index);
    keys = vec2<u32>(max(keys.x, keys_{number}.x), min(keys.y, keys_{number}.y));"
            );
        }
        let _ = writeln!(out, "    return keys;\n}}");
    }
}

/// Line and column, from 1, and the line itself, cut to what can be read; none past the end.
fn quote(source: &str, at: usize) -> Option<(usize, usize, String)> {
    if at >= source.len() {
        return None;
    }
    let before = source.get(..at)?;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = source.get(start..)?.lines().next()?;
    let column = source.get(start..at)?.chars().count() + 1;
    let mut quoted: String = line.trim().chars().take(100).collect();
    if quoted.len() < line.trim().len() {
        quoted.push_str(" ...");
    }
    Some((before.matches('\n').count() + 1, column, quoted))
}

#[cfg(test)]
mod tests;
