//! What a caller's WGSL may hold: plain functions of numbers.

use std::error::Error as _;

use wgpu::naga::{
    self, Block, Expression, Function, Literal, Module, Scalar, ScalarKind, Span, Statement,
    TypeInner,
    valid::{Capabilities, ValidationFlags, Validator},
};

use super::text::{Declaration, Fault, Kind, Token};

/// A function that attention calls, by its parameter types and result.
pub(super) struct Hook {
    pub name: &'static str,
    parameters: &'static [Type],
    result: Type,
    /// How it is declared.
    pub declaration: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    F32,
    U32,
    Bool,
    Vec2U32,
}

pub(super) const SCORE: Hook = Hook {
    name: "score_mod",
    parameters: &[Type::F32, Type::U32, Type::U32, Type::U32, Type::U32],
    result: Type::F32,
    declaration: "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32",
};
pub(super) const MASK: Hook = Hook {
    name: "mask_mod",
    parameters: &[Type::U32, Type::U32, Type::U32, Type::U32],
    result: Type::Bool,
    declaration: "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool",
};
pub(super) const PROB: Hook = Hook {
    name: "prob_mod",
    parameters: &[Type::F32, Type::U32, Type::U32, Type::U32, Type::U32],
    result: Type::F32,
    declaration: "fn prob_mod(weight: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32",
};
pub(super) const RANGE: Hook = Hook {
    name: "key_range",
    parameters: &[Type::U32, Type::U32, Type::U32],
    result: Type::Vec2U32,
    declaration: "fn key_range(batch: u32, head: u32, q_index: u32) -> vec2<u32>",
};
pub(super) const HOOKS: [&Hook; 4] = [&SCORE, &MASK, &PROB, &RANGE];

/// Brackets in brackets, operators in one expression, branches of a function, declarations: compilers walk
/// these by recursion, on stacks of unknown size.
const MAX_DEPTH: usize = 48;
const MAX_OPERATORS: usize = 256;
const MAX_BRANCHES: usize = 128;
const MAX_DECLARATIONS: usize = 256;
/// Calls that one call of a function comes to.
const MAX_CALLS: u64 = 1024;
/// Elements of an array: WGSL promises no more in a constructor.
const MAX_ARRAY: u32 = 2047;
/// Bytes of variables: WGSL promises 8192 to a whole shader, and the kernels need theirs.
const MAX_LOCAL_BYTES: u64 = 2048;

/// Refuses what can be seen in the words.
pub(super) fn check_words(
    text: &str,
    tokens: &[Token],
    declared: &[Declaration<'_>],
) -> Result<(), Fault> {
    for (number, token) in tokens.iter().enumerate() {
        let word = &text[token.range.clone()];
        let at = token.range.start;
        let after = |symbol: u8| {
            number
                .checked_sub(1)
                .and_then(|before| tokens.get(before))
                .is_some_and(|before| before.is(symbol))
        };
        if token.kind != Kind::Word {
            continue;
        }
        if after(b'@') {
            if !["must_use", "align", "size"].contains(&word) {
                return Err(Fault::at(
                    at,
                    format!("the attribute `@{word}`"),
                    "a mod is plain functions: without entry points, bindings or diagnostics",
                ));
            }
            continue;
        }
        match word {
            "for" | "while" | "loop" => {
                return Err(Fault::at(
                    at,
                    format!("a loop (`{word}`)"),
                    "write the steps out, or use a buffer as a table: some drivers end long loops early, without a word",
                ));
            }
            "enable" | "requires" | "diagnostic" => {
                return Err(Fault::at(
                    at,
                    format!("the directive `{word}`"),
                    "a mod takes WGSL as it is without extensions",
                ));
            }
            "discard" => {
                return Err(Fault::at(
                    at,
                    "`discard`",
                    "kernels are no fragment shaders",
                ));
            }
            _ if word.starts_with("mod_") && !after(b'.') => {
                return Err(Fault::at(
                    at,
                    format!("the name `{word}`"),
                    "names that begin with `mod_` are foveate's: choose another",
                ));
            }
            _ => {}
        }
    }
    for Declaration { keyword, name, at } in declared {
        if ["var", "override"].contains(keyword) {
            return Err(Fault::at(
                *at,
                format!("`{name}` is a variable outside of any function (`{keyword}`)"),
                "use `const`, a variable in a function, or a buffer of the mod",
            ));
        }
        if is_wgsl_name(name) {
            return Err(Fault::at(
                *at,
                format!("`{name}` is a name of WGSL itself"),
                "choose another name",
            ));
        }
    }
    if let Some(past) = declared.get(MAX_DECLARATIONS) {
        return Err(Fault::at(
            past.at,
            format!("more than {MAX_DECLARATIONS} declarations"),
            "use a buffer as a table",
        ));
    }
    check_operators(text, tokens)?;
    check_size(text, tokens)
}

/// Binary operators since the last bracket, comma or assignment, which may not stand side by side.
#[derive(Default)]
struct Operators {
    /// Inside of the `<` and `>` of a type.
    template: bool,
    logical: Option<u8>,
    bitwise: Option<u8>,
    comparison: bool,
    shift: bool,
    arithmetic: bool,
}

impl Operators {
    /// Takes one more; whether the grammar allows it there.
    fn take(&mut self, operator: &[u8]) -> bool {
        let first = operator.first().copied().unwrap_or_default();
        let allowed = match operator {
            b"&&" | b"||" => {
                self.bitwise.is_none() && self.logical.is_none_or(|before| before == first)
            }
            b"&" | b"|" | b"^" => {
                !(self.shift || self.arithmetic || self.comparison || self.logical.is_some())
                    && self.bitwise.is_none_or(|before| before == first)
            }
            b"<<" | b">>" => !self.shift && !self.arithmetic && self.bitwise.is_none(),
            b"+" | b"-" | b"*" | b"/" | b"%" => !self.shift && self.bitwise.is_none(),
            _ => self.bitwise.is_none(),
        };
        match operator {
            b"&" | b"|" | b"^" => self.bitwise = Some(first),
            b"<<" | b">>" => self.shift = true,
            b"+" | b"-" | b"*" | b"/" | b"%" => self.arithmetic = true,
            _ => {
                // Each side of a comparison, and of `&&`, is by itself.
                self.shift = false;
                self.arithmetic = false;
                self.comparison = true;
                if operator.len() == 2 && matches!(first, b'&' | b'|') {
                    self.logical = Some(first);
                }
            }
        }
        allowed
    }
}

/// Refuses operators side by side that WGSL wants brackets for: naga takes them, other compilers do not.
fn check_operators(text: &str, tokens: &[Token]) -> Result<(), Fault> {
    const TWO: [&[u8]; 18] = [
        b"&&", b"||", b"<<", b">>", b"==", b"!=", b"<=", b">=", b"->", b"++", b"--", b"+=", b"-=",
        b"*=", b"/=", b"%=", b"&=", b"|=",
    ];
    let bytes = text.as_bytes();
    let mut levels = vec![Operators::default()];
    // Whether the token before ends an operand, so that an operator here has two.
    let mut operand = false;
    let mut before = "";
    // Where the last operator ends.
    let mut done = 0;
    for token in tokens {
        let word = &text[token.range.clone()];
        let at = token.range.start;
        let Kind::Symbol(symbol) = token.kind else {
            let statement = ["return", "if", "else", "switch", "case", "default"].contains(&word);
            if statement && let Some(level) = levels.last_mut() {
                *level = Operators {
                    template: level.template,
                    ..Operators::default()
                };
            }
            operand = !statement;
            before = word;
            continue;
        };
        if at < done {
            continue;
        }
        let in_template = levels.last().is_some_and(|level| level.template);
        let starts_template = symbol == b'<'
            && (["array", "ptr", "bitcast", "atomic"].contains(&before)
                || (before.len() == 4 && before.starts_with("vec"))
                || (before.len() == 6 && before.starts_with("mat")));
        match symbol {
            b'(' | b'[' | b'{' => {
                levels.push(Operators::default());
                operand = false;
            }
            b')' | b']' => {
                levels.pop();
                operand = true;
            }
            b'}' => {
                levels.pop();
                if let Some(level) = levels.last_mut() {
                    *level = Operators::default();
                }
                operand = false;
            }
            b'<' if starts_template => {
                levels.push(Operators {
                    template: true,
                    ..Operators::default()
                });
                operand = false;
            }
            b'>' if in_template => {
                levels.pop();
                operand = true;
            }
            b',' | b';' | b':' | b'@' => {
                if let Some(level) = levels.last_mut() {
                    *level = Operators {
                        template: level.template,
                        ..Operators::default()
                    };
                }
                operand = false;
            }
            b'.' => {}
            _ => {
                let three = bytes.get(at..at + 3).unwrap_or_default();
                let two = bytes.get(at..at + 2).unwrap_or_default();
                let operator = if [b"<<=", b">>="].iter().any(|op| *op == three) {
                    three
                } else if TWO.contains(&two) || two == b"^=" {
                    two
                } else {
                    &bytes[at..at + 1]
                };
                done = at + operator.len();
                let assigns =
                    operator.ends_with(b"=") && !matches!(operator, b"==" | b"!=" | b"<=" | b">=");
                if assigns {
                    if let Some(level) = levels.last_mut() {
                        *level = Operators::default();
                    }
                } else if operand
                    && !matches!(operator, b"->" | b"++" | b"--" | b"!" | b"~")
                    && let Some(level) = levels.last_mut()
                    && !level.take(operator)
                {
                    return Err(Fault::at(
                        at,
                        format!(
                            "`{}` beside another operator without brackets",
                            String::from_utf8_lossy(operator)
                        ),
                        "write brackets around what belongs together",
                    ));
                }
                operand = matches!(operator, b"++" | b"--");
            }
        }
        before = "";
    }
    Ok(())
}

/// Whether a word means something in WGSL.
pub(super) fn is_wgsl_name(word: &str) -> bool {
    use naga::keywords::wgsl::{BUILTIN_IDENTIFIERS, RESERVED};
    RESERVED.contains(&word) || BUILTIN_IDENTIFIERS.contains(&word)
}

fn check_size(text: &str, tokens: &[Token]) -> Result<(), Fault> {
    // Operators since the last comma or semicolon, for each open bracket.
    let mut operators = vec![0usize];
    let mut branches = 0;
    for token in tokens {
        let too = |what: &str| {
            Err(Fault::at(
                token.range.start,
                format!("{what} here"),
                "split it up, or use a buffer as a table",
            ))
        };
        match token.kind {
            Kind::Symbol(b'(' | b'[' | b'{') => {
                // What is indexed or called in a chain nests as well.
                if let Some(count) = operators.last_mut() {
                    *count += 1;
                }
                operators.push(0);
                if operators.len() > MAX_DEPTH {
                    return too(&format!("more than {MAX_DEPTH} open brackets"));
                }
            }
            Kind::Symbol(b')' | b']') => {
                operators.pop();
            }
            Kind::Symbol(b'}') => {
                operators.pop();
                if let Some(count) = operators.last_mut() {
                    *count = 0;
                }
                if operators.len() <= 1 {
                    branches = 0;
                }
            }
            Kind::Symbol(b',' | b';') => {
                if let Some(count) = operators.last_mut() {
                    *count = 0;
                }
            }
            Kind::Word if ["else", "case"].contains(&&text[token.range.clone()]) => {
                branches += 1;
                if branches > MAX_BRANCHES {
                    return too(&format!("more than {MAX_BRANCHES} branches of a function"));
                }
            }
            Kind::Symbol(_) => {
                if let Some(count) = operators.last_mut() {
                    *count += 1;
                }
            }
            _ => {}
        }
        if operators.last().is_some_and(|count| *count > MAX_OPERATORS) {
            return too(&format!(
                "more than {MAX_OPERATORS} operators in one expression"
            ));
        }
    }
    Ok(())
}

/// Reads text and validates it.
pub(super) fn module(text: &str) -> Result<Module, Fault> {
    // naga has had panics on odd input; a caller's text must not end the caller's program.
    std::panic::catch_unwind(|| validated(text)).unwrap_or_else(|_| {
        Err(Fault::anywhere(
            "the WGSL compiler fails on the text",
            "please report it, and write it another way",
        ))
    })
}

const REMEDY: &str = "correct the WGSL";

fn validated(text: &str) -> Result<Module, Fault> {
    let module = naga::front::wgsl::parse_str(text).map_err(|error| {
        let mut message = error.message().to_owned();
        let label = error.labels().next();
        for note in label
            .filter(|(_, note)| !note.is_empty())
            .map(|(_, note)| note)
            .into_iter()
            .chain(error.notes())
        {
            message.push_str("; ");
            message.push_str(note);
        }
        Fault {
            at: label.and_then(|(span, _)| place(span)),
            message,
            remedy: REMEDY.into(),
        }
    })?;
    let checked = Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module);
    if let Err(error) = checked {
        // The whole function comes along with what is wrong in it: the shortest says most.
        let at = error
            .spans()
            .filter_map(|(span, _)| span.to_range())
            .min_by_key(|range| range.len())
            .map(|range| range.start);
        let mut message = error.as_inner().to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        return Err(Fault {
            at,
            message,
            remedy: REMEDY.into(),
        });
    }
    Ok(module)
}

fn place(span: Span) -> Option<usize> {
    span.to_range().map(|range| range.start)
}

fn fault(span: Span, message: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Fault {
        at: place(span),
        message: message.into(),
        remedy: remedy.into(),
    }
}

const PLAIN: &str =
    "a mod is plain functions of numbers: without memory, textures, barriers or subgroups";

/// Refuses what is valid WGSL, but not for a mod; and hooks that are not as they must be.
pub(super) fn check_module(module: &Module) -> Result<(), Fault> {
    // One variable is `UNIFORM`.
    if !module.entry_points.is_empty()
        || module.global_variables.len() > 1
        || !module.overrides.is_empty()
    {
        return Err(Fault::anywhere(
            "entry points, variables outside of functions, or overrides",
            PLAIN,
        ));
    }
    for (handle, ty) in module.types.iter() {
        check_type(&ty.inner)
            .map_err(|message| fault(module.types.get_span(handle), message, PLAIN))?;
    }
    check_bits(&module.global_expressions)?;
    let mut local_bytes = 0u64;
    // How many functions run when each is called once; those it calls come before it.
    let mut runs: Vec<u64> = Vec::new();
    for (handle, function) in module.functions.iter() {
        let mut called = Vec::new();
        calls(&function.body, &mut called);
        let inner = called
            .into_iter()
            .filter_map(|index| runs.get(index))
            .fold(1u64, |sum, each| sum.saturating_add(*each));
        if inner > MAX_CALLS {
            return Err(fault(
                module.functions.get_span(handle),
                format!("a function that comes to more than {MAX_CALLS} calls"),
                "call less: compilers write every call out",
            ));
        }
        runs.push(inner);
        for argument in &function.arguments {
            if matches!(
                module.types[argument.ty].inner,
                TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. }
            ) {
                return Err(fault(
                    module.functions.get_span(handle),
                    "a function that takes a pointer",
                    "return the value: not every WGSL compiler takes two pointers to one variable",
                ));
            }
        }
        for (handle, local) in function.local_variables.iter() {
            let bytes = module.types[local.ty].inner.size(module.to_ctx());
            local_bytes += u64::from(bytes);
            if local_bytes > MAX_LOCAL_BYTES {
                return Err(fault(
                    function.local_variables.get_span(handle),
                    format!("variables of more than {MAX_LOCAL_BYTES} bytes in all"),
                    "use a buffer as a table",
                ));
            }
        }
        check_bits(&function.expressions)?;
        check_expressions(function)?;
        check_block(&function.body)?;
    }
    let mut any = false;
    for hook in HOOKS {
        let found = module
            .functions
            .iter()
            .find(|(_, function)| function.name.as_deref() == Some(hook.name));
        if let Some((handle, function)) = found {
            any = true;
            if !is_declared_as(module, function, hook) {
                return Err(fault(
                    module.functions.get_span(handle),
                    format!("a {} with other parameters or another result", hook.name),
                    format!("declare it as `{}`", hook.declaration),
                ));
            }
        }
    }
    if !any {
        return Err(Fault::anywhere(
            "none of score_mod, mask_mod, prob_mod and key_range is defined",
            format!("define one, such as `{}`", SCORE.declaration),
        ));
    }
    Ok(())
}

fn is_declared_as(module: &Module, function: &Function, hook: &Hook) -> bool {
    let is = |ty: naga::Handle<naga::Type>, wanted: Type| match (&module.types[ty].inner, wanted) {
        (TypeInner::Scalar(scalar), Type::F32) => *scalar == Scalar::F32,
        (TypeInner::Scalar(scalar), Type::U32) => *scalar == Scalar::U32,
        (TypeInner::Scalar(scalar), Type::Bool) => *scalar == Scalar::BOOL,
        (TypeInner::Vector { size, scalar }, Type::Vec2U32) => {
            *size == naga::VectorSize::Bi && *scalar == Scalar::U32
        }
        _ => false,
    };
    function.arguments.len() == hook.parameters.len()
        && function
            .arguments
            .iter()
            .zip(hook.parameters)
            .all(|(argument, wanted)| is(argument.ty, *wanted))
        && function
            .result
            .as_ref()
            .is_some_and(|result| is(result.ty, hook.result))
}

fn check_type(inner: &TypeInner) -> Result<(), String> {
    let scalar = match inner {
        TypeInner::Scalar(scalar)
        | TypeInner::Vector { scalar, .. }
        | TypeInner::Matrix { scalar, .. } => *scalar,
        TypeInner::Array {
            size: naga::ArraySize::Constant(count),
            ..
        } if count.get() <= MAX_ARRAY => return Ok(()),
        TypeInner::Array { .. } => {
            return Err(format!(
                "an array of no fixed size, or of more than {MAX_ARRAY} elements"
            ));
        }
        TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. } | TypeInner::Struct { .. } => {
            return Ok(());
        }
        _ => return Err("a type that is no number, vector, matrix, array or struct".into()),
    };
    if scalar.kind == ScalarKind::Bool || scalar.width == 4 {
        Ok(())
    } else {
        Err("numbers of other than 32 bits".into())
    }
}

/// Bits that are no finite number are refused where they are constant: Tint does so.
fn check_bits(expressions: &naga::Arena<Expression>) -> Result<(), Fault> {
    for (handle, expression) in expressions.iter() {
        let Expression::As {
            expr,
            kind: ScalarKind::Float,
            convert: None,
        } = expression
        else {
            continue;
        };
        let bits = match expressions[*expr] {
            Expression::Literal(Literal::U32(bits)) => bits,
            Expression::Literal(Literal::I32(bits)) => bits as u32,
            _ => continue,
        };
        if !f32::from_bits(bits).is_finite() {
            return Err(fault(
                expressions.get_span(handle),
                "a constant that is infinite or no number",
                "use a finite one: a mask hides keys, not minus infinity",
            ));
        }
    }
    Ok(())
}

fn check_expressions(function: &Function) -> Result<(), Fault> {
    for (handle, expression) in function.expressions.iter() {
        let allowed = matches!(
            expression,
            Expression::Literal(_)
                | Expression::Constant(_)
                | Expression::ZeroValue(_)
                | Expression::Compose { .. }
                | Expression::Access { .. }
                | Expression::AccessIndex { .. }
                | Expression::Splat { .. }
                | Expression::Swizzle { .. }
                | Expression::FunctionArgument(_)
                | Expression::LocalVariable(_)
                | Expression::Load { .. }
                | Expression::Unary { .. }
                | Expression::Binary { .. }
                | Expression::Select { .. }
                | Expression::Relational { .. }
                | Expression::Math { .. }
                | Expression::As { .. }
                | Expression::CallResult(_)
        );
        if !allowed {
            return Err(fault(
                function.expressions.get_span(handle),
                "an operation on memory, textures, derivatives or subgroups",
                PLAIN,
            ));
        }
    }
    Ok(())
}

/// The functions that a block calls, by number, as often as it does.
fn calls(block: &Block, list: &mut Vec<usize>) {
    for statement in block {
        match statement {
            Statement::Call { function, .. } => list.push(function.index()),
            Statement::Block(block) => calls(block, list),
            Statement::If { accept, reject, .. } => {
                calls(accept, list);
                calls(reject, list);
            }
            Statement::Switch { cases, .. } => {
                for case in cases {
                    calls(&case.body, list);
                }
            }
            _ => {}
        }
    }
}

fn check_block(block: &Block) -> Result<(), Fault> {
    for (statement, span) in block.span_iter() {
        match statement {
            Statement::Emit(_)
            | Statement::Break
            | Statement::Return { .. }
            | Statement::Store { .. }
            | Statement::Call { .. } => {}
            Statement::Block(block) => check_block(block)?,
            Statement::If { accept, reject, .. } => {
                check_block(accept)?;
                check_block(reject)?;
            }
            Statement::Switch { cases, .. } => {
                for case in cases {
                    check_block(&case.body)?;
                }
            }
            _ => {
                return Err(fault(
                    *span,
                    "a barrier, an atomic, a loop, or an operation on memory or subgroups",
                    PLAIN,
                ));
            }
        }
    }
    Ok(())
}
