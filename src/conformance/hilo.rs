//! HiLo attention (LITv2): some heads attend inside windows of the image, the others to a pooled image.

use super::{
    case::Values,
    linear::{columns, linear, permuted},
    problem::{Input, Operand, Problem, Reader},
};
use crate::{DType, ops::Slot};

/// The image and its windows.
#[derive(Clone, Copy)]
struct Image {
    batch: usize,
    height: usize,
    width: usize,
    window: usize,
}

impl Image {
    /// Rows and columns of windows.
    fn windows(self) -> [usize; 2] {
        [self.height / self.window, self.width / self.window]
    }

    /// Pixels of `channels` in the order of windows, each window's rows one after the other.
    fn by_window(self, x: &[f32], channels: usize) -> Vec<f32> {
        let [rows, columns] = self.windows();
        let shape = [
            self.batch,
            rows,
            self.window,
            columns,
            self.window,
            channels,
        ];
        permuted(x, shape, [0, 1, 3, 2, 4, 5])
    }

    /// The same back.
    fn by_pixel(self, x: &[f32], channels: usize) -> Vec<f32> {
        let [rows, columns] = self.windows();
        let shape = [
            self.batch,
            rows,
            columns,
            self.window,
            self.window,
            channels,
        ];
        permuted(x, shape, [0, 1, 3, 2, 4, 5])
    }

    /// The mean of each window.
    fn pooled(self, x: &[f32], channels: usize) -> Vec<f32> {
        let pixels = self.window * self.window;
        let sorted = self.by_window(x, channels);
        let mut means = Vec::new();
        for window in sorted.chunks_exact((pixels * channels).max(1)) {
            means.extend((0..channels).map(|channel| {
                let values = window.iter().skip(channel).step_by(channels);
                (values.map(|&x| f64::from(x)).sum::<f64>() / pixels as f64) as f32
            }));
        }
        means
    }
}

/// A branch's heads, and the linear layer after them.
struct Branch {
    heads: usize,
    dim: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Branch {
    fn new(
        reader: &mut Reader<'_>,
        heads: usize,
        dim: usize,
        letter: char,
    ) -> Result<Self, String> {
        let (weight, [outputs, inputs]) = reader.shaped(&format!("w.{letter}_proj.weight"))?;
        let (bias, [_]) = reader.shaped(&format!("w.{letter}_proj.bias"))?;
        if [outputs, inputs] != [heads * dim; 2] {
            return Err(format!("{letter}_proj is {outputs} x {inputs}"));
        }
        Ok(Self {
            heads,
            dim,
            weight: weight.to_vec(),
            bias: bias.to_vec(),
        })
    }

    fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// Attention of tokens `[batch, len, heads * dim]`; the output lies as they do.
    fn attention(&self, batch: usize, [q, k, v]: [Vec<f32>; 3]) -> Result<Problem, String> {
        let operand = |values: Vec<f32>| {
            let len = values.len() / (batch * self.width()).max(1);
            let shape = [batch, len, self.heads, self.dim].map(|len| len as u64);
            Operand::heads_inside(Input::Given(Values::Real(values)), DType::F32, shape)
        };
        let mut problem = Problem::attention(operand(q), operand(k), operand(v))?;
        problem.output_heads_inside();
        Ok(problem.done())
    }

    fn project(&self, o: &[f32]) -> Vec<f32> {
        linear(o, &self.weight, self.width(), Some(&self.bias))
    }
}

/// Linear layers, pooling and the order of windows on the host; both attentions on the device.
pub(super) fn hilo(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let size = |name: &str| reader.count(name).map(|size| size as usize);
    let (height, width, window) = (size("height")?, size("width")?, size("window")?);
    let heads = size("heads")?;
    let [high_heads, low_heads] = ["h_heads", "l_heads"].map(|name| reader.size(name));
    let (high_heads, low_heads) = (high_heads? as usize, low_heads? as usize);
    let (x, [batch, pixels, channels]) = reader.shaped("x")?;
    if height * width != pixels
        || height % window != 0
        || width % window != 0
        || channels % heads != 0
    {
        return Err(format!(
            "{pixels} pixels of {channels} channels for {height} x {width} in windows of {window}, {heads} heads"
        ));
    }
    let dim = channels / heads;
    let image = Image {
        batch,
        height,
        width,
        window,
    };
    let mut calls: Option<Problem> = None;
    let mut add = |problem: Problem| match &mut calls {
        None => {
            calls = Some(problem);
            0
        }
        Some(calls) => calls.then(problem),
    };
    let mut parts: Vec<(&str, usize, Make)> = Vec::new();
    if high_heads > 0 {
        let branch = Branch::new(reader, high_heads, dim, 'h')?;
        let (weight, [_, _]) = reader.shaped("w.h_qkv.weight")?;
        let qkv = linear(&image.by_window(x, channels), weight, channels, None);
        let of = |part: usize| {
            columns(
                &qkv,
                3 * branch.width(),
                part * branch.width(),
                branch.width(),
            )
        };
        let [rows, columns] = image.windows();
        let call = add(branch.attention(batch * rows * columns, [of(0), of(1), of(2)])?);
        parts.push((
            "hifi",
            branch.width(),
            Box::new(move |outputs| {
                Ok(branch.project(&image.by_pixel(outputs.of(call, Slot::O)?, branch.width())))
            }),
        ));
    }
    if low_heads > 0 {
        let branch = Branch::new(reader, low_heads, dim, 'l')?;
        let (to_q, [_, _]) = reader.shaped("w.l_q.weight")?;
        let (to_kv, [_, _]) = reader.shaped("w.l_kv.weight")?;
        let kv = linear(&image.pooled(x, channels), to_kv, channels, None);
        let of = |part: usize| {
            columns(
                &kv,
                2 * branch.width(),
                part * branch.width(),
                branch.width(),
            )
        };
        let q = linear(x, to_q, channels, None);
        let call = add(branch.attention(batch, [q, of(0), of(1)])?);
        parts.push((
            "lofi",
            branch.width(),
            Box::new(move |outputs| Ok(branch.project(outputs.of(call, Slot::O)?))),
        ));
    }
    let mut problem = calls.ok_or("no heads")?;
    let names = reader.case.roles.intermediate.clone();
    let parts = std::rc::Rc::new(parts);
    for (number, (name, _, _)) in parts.iter().enumerate() {
        if names.iter().any(|other| other == name) {
            let parts = parts.clone();
            problem = problem.expect_host(name, move |outputs| match parts.get(number) {
                Some((_, _, make)) => make(outputs),
                None => Err("no such branch".into()),
            });
        }
    }
    Ok(problem.expect_host("o", move |outputs| {
        let mut made = Vec::new();
        for (_, width, make) in parts.iter() {
            made.push((*width, make(outputs)?));
        }
        let rows = 0..batch * pixels;
        Ok(rows
            .flat_map(|row| {
                made.iter().flat_map(move |(width, values)| {
                    values.iter().skip(row * width).take(*width).copied()
                })
            })
            .collect())
    }))
}

type Make = super::problem::Make<Vec<f32>>;
