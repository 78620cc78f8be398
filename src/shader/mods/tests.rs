use proptest::prelude::*;

use super::*;
use crate::tensor::Layout;

const SCORE: &str =
    "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32";
const MASK: &str = "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool";
const RANGE: &str = "fn key_range(batch: u32, head: u32, q_index: u32) -> vec2<u32>";

fn link(source: impl Into<String>) -> Result<Mods> {
    Mods::link(&[Mod::new(source)])
}

/// What was found wrong with the text of one mod.
fn fault(source: impl Into<String>) -> String {
    let source = source.into();
    match link(source.clone()) {
        Err(Error::Invalid {
            argument, found, ..
        }) => {
            assert_eq!(argument, "mods[0].source", "{found}");
            found
        }
        other => panic!("{other:?} for\n{source}"),
    }
}

/// A score mod with this body.
fn body(text: &str) -> String {
    format!("{SCORE} {{\n{text}\n}}\n")
}

/// The text with what kernels give, as a module.
fn valid(mods: Mods) -> wgpu::naga::Module {
    check::module(&format!("{}{}", mods.text(), surroundings())).expect("valid")
}

#[test]
fn no_mods_are_no_text() {
    let none = Mods::link(&[]).expect("links");
    assert_eq!(none, Mods::default());
    assert_eq!((none.text(), none.buffers()), ("", 0));
    assert!(!none.has_score() && !none.has_mask() && !none.has_prob() && !none.has_range());
}

#[test]
fn text_is_linked_under_its_own_names() {
    let source = format!(
        "// slopes(head) times the distance
struct Pair {{ twice: f32, score: f32, }}
alias Real = f32;
const TWO: u32 = 2u;
fn twice(x: Real) -> Real {{ return x * f32(TWO); }}
{SCORE} {{
    /* twice /* nested */ */
    let pair = Pair(twice(slopes(head)), score);
    var twice_more = pair.twice;
    twice_more += 1.0e+1 - 1.e-1f;
    return pair.score + twice_more * f32(valid_keys(batch));
}}
"
    );
    let change = Mod::new(source).buffer("slopes", Layout::f32([4]));
    let ids = Mod::new(format!(
        "{MASK} {{ return slopes(q_index) == slopes(kv_index); }}"
    ))
    .buffer("slopes", Layout::new(DType::U32, [8]));
    let mods = Mods::link(&[change, ids]).expect("links");
    let text = mods.text();
    for part in [
        "@group(0) @binding(17) var<storage, read> buffer_0: array<f32>; // slopes\n",
        "@group(0) @binding(18) var<storage, read> buffer_1: array<u32>; // slopes\n",
        "return buffer_0[params.buffer_0_at + index];",
        "struct mod_0_Pair { twice: f32, score: f32, }",
        "alias mod_0_Real = f32;",
        "const mod_0_TWO: u32 = 2u;",
        "fn mod_0_twice(x: mod_0_Real) -> mod_0_Real { return x * f32(mod_0_TWO); }",
        "let pair = mod_0_Pair(mod_0_twice(mod_0_slopes(head)), score);",
        "var twice_more = pair.twice;",
        "f32(valid_keys(batch))",
        "mod_1_slopes(q_index) == mod_1_slopes(kv_index)",
        "return mod_0_score_mod(score, batch, head, q_index, kv_index);",
        "return mod_1_mask_mod(batch, head, q_index, kv_index);",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("/*") && !text.contains("times the distance"));
    assert!(mods.has_score() && mods.has_mask() && !mods.has_prob() && !mods.has_range());
    assert_eq!(mods.buffers(), 2);
    valid(mods);
}

#[test]
fn lines_mean_nothing_to_the_shader_stage() {
    let source = format!(
        "const N: u32 = u32(3);\nconst M: u32 =\n4u;\r\n{}",
        body("const K: u32 = 1u;\nreturn score * f32(N + M + K);")
    );
    let mods = link(source).expect("links");
    let kernel = format!("{}{}", mods.text(), surroundings());
    let shader = crate::shader::build(&kernel, &[], "").expect("builds");
    check::module(&shader.wgsl).expect("valid");
    assert_eq!(shader.bindings.len(), 1);
}

#[test]
fn hooks_of_several_mods_are_combined() {
    let twice = body("return score * 2.0;");
    let plus = format!(
        "{}{MASK} {{ return kv_index < 9u; }}\n{RANGE} {{ return vec2<u32>(2u, 9u); }}",
        body("return score + 1.0;")
    );
    let prob = format!(
        "fn prob_mod(w: f32, b: u32, h: u32, i: u32, j: u32) -> f32 {{ return w; }}
         {MASK} {{ return true; }}\n{RANGE} {{ return vec2<u32>(0u, 4u); }}"
    );
    let mods = Mods::link(&[twice, plus, prob].map(Mod::new)).expect("links");
    assert!(mods.has_score() && mods.has_mask() && mods.has_prob() && mods.has_range());
    let text = mods.text();
    assert!(text.contains(
        "mod_1_score_mod(mod_0_score_mod(score, batch, head, q_index, kv_index), batch, head, q_index, kv_index)"
    ));
    assert!(text.contains("return mod_1_mask_mod(batch, head, q_index, kv_index) && mod_2_mask_mod(batch, head, q_index, kv_index);"));
    assert!(text.contains("return mod_2_prob_mod(weight, batch, head, q_index, kv_index);"));
    let module = valid(mods);
    for name in ["mods_score", "mods_visible", "mods_prob", "mods_keys"] {
        let found = module
            .functions
            .iter()
            .find(|(_, f)| f.name.as_deref() == Some(name));
        assert!(found.is_some(), "{name}");
    }
}

#[test]
fn equal_lists_are_one_handle() {
    let a = link(body("return score * 3.0;")).expect("links");
    let b = link(body("return score * 3.0;")).expect("links");
    let c = link(body("return score * 4.0;")).expect("links");
    assert!(std::ptr::eq(a.text(), b.text()));
    assert_eq!(a, b);
    assert_ne!(a, c);
    assert_eq!(a.cmp(&b), std::cmp::Ordering::Equal);
    assert_ne!(a.cmp(&c), std::cmp::Ordering::Equal);
    assert_ne!(a, Mods::default());
    // The layout of a buffer is not part of the text, its type is.
    let with = |layout| {
        Mods::link(&[Mod::new(body("return score + f32(x(head));")).buffer("x", layout)])
            .expect("links")
    };
    assert_eq!(with(Layout::f32([4])), with(Layout::f32([7, 2]).at(3)));
    assert_ne!(with(Layout::f32([4])), with(Layout::new(DType::U32, [4])));
}

#[test]
fn handles_survive_a_file() {
    let mods = Mods::link(&[
        Mod::new(body("return score + slopes(head);")).buffer("slopes", Layout::f32([4]))
    ])
    .expect("links");
    for mods in [mods, Mods::default()] {
        let text = serde_json::to_string(&mods).expect("writes");
        assert_eq!(serde_json::from_str::<Mods>(&text).expect("reads"), mods);
    }
    for text in [
        r#"[{"source": "nonsense", "buffers": []}]"#,
        r#"[{"source": "fn f() {}", "buffers": []}]"#,
        r#"[{"source": "", "buffers": [{"name": "for", "dtype": "f32"}]}]"#,
        r#"[{"source": "", "buffers": [{"name": "a", "dtype": "f16"}]}]"#,
        r#"[{"text": ""}]"#,
        r#"{}"#,
        "3",
    ] {
        assert!(serde_json::from_str::<Mods>(text).is_err(), "{text}");
    }
}

#[test]
fn faults_point_into_the_callers_text() {
    let found = fault(format!(
        "// first\n{}",
        body("    let x = 1.0; return scor + x;")
    ));
    assert_eq!(
        found,
        "line 3, column 25, `let x = 1.0; return scor + x;`: no definition in scope for identifier: `scor`; unknown identifier"
    );
    let found = fault(body("return 1u;"));
    assert!(found.starts_with("line 2, column "), "{found}");
    let found = fault("fn score_mod(é: f32) -> f32 { return é; }");
    assert!(
        found.starts_with("line 1, column 14, `fn score_mod(é: f32)"),
        "{found}"
    );
}

#[test]
fn what_is_no_plain_function_is_refused() {
    let ok = body("return score;");
    let mut other = Vec::new();
    let after = |text: &str| format!("{ok}{text}");
    for (source, part) in [
        (String::new(), "none of"),
        // Zeros that a compiler might write out one by one.
        (
            after("const_assert array<u32, 1000000000>()[3] == 0u;"),
            "too large",
        ),
        (body("return f32(array<u32, 1000000000>()[3]);"), ""),
        (
            body("let a = array<array<array<u32, 1000>, 1000>, 1000>(); return f32(a[3][4][5]);"),
            "",
        ),
        (
            after(
                &(0..250)
                    .map(|n| format!("const C{n} = C{};", n + 1))
                    .collect::<String>(),
            ),
            "C250",
        ),
        ("fn".into(), "reserved"),
        (after("fn f(a: u32) -> u32 { return f(a); }"), "recursive"),
        (after("fn f() { g(); } fn g() { f(); }"), "cyclic"),
        (
            after("@compute @workgroup_size(1) fn main() {}"),
            "attribute `@compute`",
        ),
        (after("var<private> x: f32;"), "outside of any function"),
        (after("var<workgroup> x: f32;"), "outside of any function"),
        (
            after("@group(0) @binding(0) var<storage> x: f32;"),
            "attribute `@group`",
        ),
        (after("override N: u32 = 1u;"), "outside of any function"),
        (after("@id(3) override N: u32 = 1u;"), "attribute `@id`"),
        (format!("enable f16;\n{ok}"), "directive `enable`"),
        (
            format!("requires pointer_composite_access;\n{ok}"),
            "directive `requires`",
        ),
        (
            format!("diagnostic(off, derivative_uniformity);\n{ok}"),
            "directive `diagnostic`",
        ),
        (
            after("@diagnostic(off, derivative_uniformity) fn f() {}"),
            "attribute `@diagnostic`",
        ),
        (after("//@if X"), "`//@`"),
        (after("/* never"), "never ends"),
        (body("workgroupBarrier(); return score;"), "barrier"),
        (body("storageBarrier(); return score;"), "barrier"),
        (body("return subgroupAdd(score);"), "apabil"),
        (body("return dpdx(score);"), "derivatives"),
        (body("discard; return score;"), "discard"),
        (after("fn f(t: texture_2d<f32>) {}"), "type"),
        (
            after("fn f(t: ptr<storage, atomic<u32>, read_write>) { atomicStore(t, 1u); }"),
            "pointer",
        ),
        (
            after("fn f(p: ptr<function, f32>) { *p = 1.0; }"),
            "pointer",
        ),
        (after("fn f(p: ptr<function, vec4<f32>>) {}"), "pointer"),
        (
            body("for (var i = 0u; i < 4u; i++) {} return score;"),
            "loop (`for`)",
        ),
        (body("while true {} return score;"), "loop (`while`)"),
        (body("loop { break; } return score;"), "loop (`loop`)"),
        (body("return bitcast<f32>(0xff800000u);"), "infinite"),
        (
            after("const INFINITY = bitcast<f32>(0x7f800000u);"),
            "bitcast",
        ),
        (body("return score + 1e39f;"), "not representable"),
        (body("return 1.0 / 0.0 + score;"), ""),
        (body("return f32(1.0lf) + score;"), ""),
        (body("return score"), "expected"),
        (
            body("let mod_0_x = score; return mod_0_x;"),
            "the name `mod_0_x`",
        ),
        (after("fn f() { let x = array<f32, 4096>(); }"), "array"),
        (
            after("fn f() { var x: array<f32, 2000>; x[1] = 1.0; }"),
            "bytes in all",
        ),
        (after("alias f32 = u32;"), "name of WGSL itself"),
        (
            after("fn min(a: u32) -> u32 { return a; }"),
            "name of WGSL itself",
        ),
        (
            after("fn valid_keys(a: u32) -> u32 { return a; }"),
            "foveate gives",
        ),
        (after(&ok), "redefin"),
        (
            "fn score_mod(score: f32) -> f32 { return score; }".into(),
            "other parameters",
        ),
        (
            format!(
                "{} {{ return score; }}",
                SCORE.replace("head: u32", "head: i32")
            ),
            "other",
        ),
        (
            format!("{} {{ return 1u; }}", SCORE.replace("-> f32", "-> u32")),
            "other",
        ),
        (
            format!(
                "{} {{ return vec2<i32>(); }}",
                RANGE.replace("vec2<u32>", "vec2<i32>")
            ),
            "other",
        ),
        (
            "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) {}".into(),
            "other",
        ),
        (after("fn naïve() {}"), "outside of a comment"),
        (after("\0"), "outside of a comment"),
        (
            body(&format!("return score{};", ".x".repeat(300))),
            "operators",
        ),
        (
            body(&format!("return score{};", "[0]".repeat(300))),
            "operators",
        ),
        (
            body(&format!("return {}score;", "- ".repeat(300))),
            "operators",
        ),
        (
            body(&format!("return score{};", " + 1.0".repeat(300))),
            "operators",
        ),
        (
            body(&format!(
                "return {}score{};",
                "(".repeat(60),
                ")".repeat(60)
            )),
            "open brackets",
        ),
        (
            body(&format!(
                "if score > 1.0 {{}} {} return score;",
                "else if score > 2.0 {}".repeat(200)
            )),
            "branches",
        ),
        (after(&"const_assert true;".repeat(3)), "NOT REFUSED"),
    ] {
        if part == "NOT REFUSED" {
            link(source).expect("links");
            continue;
        }
        let found = fault(source.clone());
        if !found.contains(part) {
            other.push(format!("{part:?} not in {found:?} for\n{source}"));
        }
    }
    assert!(other.is_empty(), "{}", other.join("\n"));
}

#[test]
fn operators_are_mixed_as_the_grammar_says() {
    // naga takes the first list, but the grammar of WGSL, and Tint, do not.
    for text in [
        "head & 1u + 2u",
        "head << 1u + 2u",
        "1u * head >> 1u",
        "head << 1u << 1u",
        "head & 1u | 2u",
        "2u + head ^ 1u",
        "select(1u, 2u, head > 1u && batch > 1u || true)",
        "vec2<u32>(head & 1u * 2u, 1u).x",
    ] {
        let found = fault(body(&format!("return f32({text});")));
        assert!(found.contains("without brackets"), "{text}: {found}");
    }
    for text in [
        "(head & 1u) + 2u",
        "head << (1u + 2u)",
        "(head << 1u) << 1u",
        "head & 1u & 2u & vec2<u32>(1u, head).x",
        "select(1u, 2u, head > 1u + 2u && batch < 1u << 4u && kv_index != q_index * 2u - 1u)",
        "select(1u, 2u, (head > 1u && batch > 1u) || !(score >= -2.0 + score))",
        "array<vec2<u32>, 2>(vec2<u32>(1u), vec2<u32>(head, 3u >> 1u))[head & 1u].x + 2u",
        "bitcast<u32>(score) >> 1u",
    ] {
        let source = body(&format!(
            "var x = 1u; x += head & 3u; x <<= 2u; let y: vec2<u32>= vec2<u32>(x); return f32({text});"
        ));
        if let Err(error) = link(source) {
            panic!("{text}: {error}");
        }
    }
}

#[test]
fn too_much_is_refused() {
    let long = format!("{}// {}", body("return score;"), "x".repeat(MAX_BYTES));
    let error = link(long).unwrap_err().to_string();
    assert!(error.contains("bytes in all"), "{error}");
    let many = vec![Mod::new(body("return score;")); MAX_MODS + 1];
    assert!(Mods::link(&many).is_err());
    assert!(Mods::link(&many[1..]).is_ok());
    let constants: String = (0..300).map(|n| format!("const C{n} = {n};")).collect();
    assert!(fault(format!("{}{constants}", body("return score;"))).contains("declarations"));
    let mut change = Mod::new(body("return score;"));
    for n in 0..5 {
        change = change.buffer(format!("b{n}"), Layout::f32([1]));
    }
    let error = Mods::link(&[change]).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[test]
fn buffers_need_names_of_their_own() {
    for name in [
        "",
        "_",
        "1a",
        "a b",
        "a-b",
        "é",
        "__a",
        "mod_x",
        "for",
        "f32",
        "vec4",
        "min",
        "self",
        "texture_2d",
        "valid_keys",
        "score_mod",
        "a\n",
        "a; fn f() {}",
    ] {
        let change = Mod::new(body("return score;")).buffer(name, Layout::f32([1]));
        match Mods::link(&[change]) {
            Err(Error::Invalid { argument, .. }) => {
                assert_eq!(argument, "mods[0].buffers[0].name", "{name:?}");
            }
            other => panic!("{other:?} for {name:?}"),
        }
    }
    let twice = Mod::new(body("return score;"))
        .buffer("a", Layout::f32([1]))
        .buffer("a", Layout::f32([1]));
    assert!(Mods::link(&[twice]).is_err());
    let function =
        Mod::new(format!("{}fn a() {{}}", body("return score;"))).buffer("a", Layout::f32([1]));
    assert!(
        Mods::link(&[function])
            .unwrap_err()
            .to_string()
            .contains("name of a buffer")
    );
    for layout in [Layout::f16([1]), Layout::new(DType::Bool, [1])] {
        let change = Mod::new(body("return score;")).buffer("a", layout);
        assert!(
            Mods::link(&[change])
                .unwrap_err()
                .to_string()
                .contains("f32 or u32")
        );
    }
}

#[test]
fn buffers_cannot_be_written() {
    let change = Mod::new(body("x(head) = 1.0; return score;")).buffer("x", Layout::f32([1]));
    assert!(Mods::link(&[change]).is_err());
    assert!(fault(body("buffer_0[head] = 1.0; return score;")).contains("buffer_0"));
    assert!(fault(body("return score * params.scale;")).contains("params"));
}

#[test]
fn names_of_the_kernels_may_be_used() {
    // `q`, `Row`, `params` and the like are names in the kernels.
    let source = format!(
        "struct Row {{ q: f32 }}\nconst params = 2.0;\nfn final_score(q: f32) -> Row {{ return Row(q * params); }}\n{}",
        body("let q = final_score(score); return q.q;")
    );
    valid(link(source).expect("links"));
}

/// Snippets that are strung together to something that is nearly WGSL.
const PIECES: &[&str] = &[
    "fn ",
    "score_mod",
    "mask_mod",
    "(",
    ")",
    "{",
    "}",
    "score",
    ": f32",
    ": u32",
    ",",
    " -> f32",
    " -> bool",
    "return ",
    ";",
    "1u",
    "0x1p+3",
    "1.5",
    "let ",
    "var ",
    "x",
    "=",
    "+",
    "<",
    ">",
    "array<",
    "vec2<u32>",
    "struct ",
    "const ",
    "alias ",
    "@",
    "must_use ",
    ".",
    "[",
    "]",
    "if ",
    "else ",
    "switch ",
    "case ",
    "//",
    "/*",
    "*/",
    "\n",
    "\r",
    " ",
    "&",
    "-",
    "!",
    "é",
    "\u{2028}",
    "bitcast<f32>",
    "ptr<function, ",
    "valid_keys",
    "slopes",
    "enable ",
    "for ",
    "_",
    "4294967295u",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics(
        free in any::<String>(),
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..60),
    ) {
        let strung: String = pieces.concat();
        for source in [free, strung.clone(), body(&strung), format!("{}{strung}", body("return score;"))] {
            let change = Mod::new(source).buffer("slopes", Layout::f32([2]));
            if let Ok(mods) = Mods::link(&[change]) {
                valid(mods);
            }
        }
    }

    #[test]
    fn comments_keep_their_room(source in any::<String>(), tail in ".{0,9}//.{0,20}\n/\\*.{0,9}\\*/") {
        for source in [source, tail] {
            if let Ok(text) = text::without_comments(&source) {
                prop_assert_eq!(text.len(), source.len());
                prop_assert!(text.is_ascii());
            }
        }
    }
}

#[test]
fn calls_that_multiply_are_refused() {
    let chain = |count: usize| {
        let mut source = String::from("fn twice0(x: f32) -> f32 { return x + 1.0; }\n");
        for number in 1..count {
            let before = number - 1;
            source.push_str(&format!(
                "fn twice{number}(x: f32) -> f32 {{ return twice{before}(twice{before}(x)); }}\n"
            ));
        }
        let last = count - 1;
        source.push_str(&body(&format!("return twice{last}(score);")));
        link(source)
    };
    assert!(chain(8).is_ok());
    let error = chain(64).unwrap_err().to_string();
    assert!(error.contains("calls"), "{error}");
}
