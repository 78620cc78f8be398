//! `foveate run linear`

use clap::ValueEnum;
use serde::Deserialize;

use super::{AxisOrder, Input};
use crate::{
    DType, Decay, Error, FeatureMap, Layout, LinearAttention, Reach, Result, UpdateRule,
    cli::tensor_file::{Elements, FileTensor, Stored},
    ops::Slot,
};

/// What to compute; all of a linear attention but its tensors.
#[derive(Debug, Clone, Default, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LinearSettings {
    /// Factor on the products of queries and keys. Default: 1 / sqrt(dim of q).
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Decays of lightning attention, instead of a tensor.
    #[arg(long, conflicts_with = "retention")]
    lightning: bool,
    /// Decays of RetNet, instead of a tensor.
    #[arg(long)]
    retention: bool,
    /// The channels of a decay of four axes are those of values; needed where keys have as many.
    #[arg(long)]
    value_decay: bool,
    /// The delta rule, with the tensor beta where it is given.
    #[arg(long)]
    delta: bool,
    /// Betas may be up to 2.
    #[arg(long)]
    negative_eigenvalues: bool,
    /// Divide by the sum of the keys plus this number.
    #[arg(long, value_name = "EPS")]
    normalised: Option<f32>,
    /// What is applied to queries.
    #[arg(long, value_enum, default_value_t)]
    feature_q: MapName,
    /// What is applied to keys.
    #[arg(long, value_enum, default_value_t)]
    feature_k: MapName,
    /// Which tokens a query's state holds.
    #[arg(long, value_enum, default_value_t)]
    reach: ReachName,
    /// Also write the state after the last token, final_state, and with --normalised the sum of the keys, final_sum.
    #[arg(long)]
    state: bool,
    /// Order of the axes of all tensors but states and sums.
    #[arg(long, value_enum, default_value_t)]
    layout: AxisOrder,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum MapName {
    /// Nothing
    #[default]
    Identity,
    /// elu(x) + 1
    EluPlusOne,
    /// max(x, 0)
    Relu,
    /// max(x, 0)^2
    SquaredRelu,
    /// Softmax over the channels
    Softmax,
    /// 1 / (1 + exp(-x))
    Sigmoid,
    /// x / (1 + exp(-x))
    Silu,
}

impl From<MapName> for FeatureMap {
    fn from(name: MapName) -> Self {
        match name {
            MapName::Identity => Self::Identity,
            MapName::EluPlusOne => Self::EluPlusOne,
            MapName::Relu => Self::Relu,
            MapName::SquaredRelu => Self::SquaredRelu,
            MapName::Softmax => Self::Softmax,
            MapName::Sigmoid => Self::Sigmoid,
            MapName::Silu => Self::Silu,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum ReachName {
    /// Those up to its own
    #[default]
    Causal,
    /// Those before its own
    Before,
    /// All of them
    All,
}

impl LinearSettings {
    pub(super) const INPUTS: &'static [(Slot, bool)] = &[
        (Slot::Q, true),
        (Slot::K, true),
        (Slot::V, true),
        (Slot::Decay, false),
        (Slot::Beta, false),
        (Slot::InitialState, false),
        (Slot::InitialSum, false),
        (Slot::KvLen, false),
        (Slot::CuSeqlens, false),
    ];

    pub(super) fn outputs(&self) -> &'static [&'static str] {
        match (self.state, self.normalised) {
            (false, _) => &["o"],
            (true, None) => &["o", "final_state"],
            (true, Some(_)) => &["o", "final_state", "final_sum"],
        }
    }

    /// An output as its file has it.
    pub(super) fn in_file(&self, slot: Slot, layout: Layout) -> Layout {
        match slot {
            Slot::O => self.layout.exchange(layout),
            _ => layout,
        }
    }

    /// Checks the gates that were read, and adds the decays that only an option names.
    pub(super) fn complete(&self, inputs: &mut Vec<Input>) -> Result<()> {
        let find = |slot| inputs.iter().find(|input: &&Input| input.slot == slot);
        if let Some(beta) = find(Slot::Beta).filter(|_| !self.delta) {
            return Err(beta.wrong(
                "betas without the delta rule".into(),
                "add --delta, or leave the tensor out",
            ));
        }
        for input in inputs.iter() {
            let checked = match (input.slot, &input.tensor.elements) {
                (Slot::Decay, Elements::Real(decays)) => LinearAttention::check_decays(decays),
                (Slot::Beta, Elements::Real(betas)) => {
                    LinearAttention::check_betas(betas, self.negative_eigenvalues)
                }
                _ => Ok(()),
            };
            checked.map_err(|error| match error {
                Error::Invalid { found, remedy, .. } => input.wrong(found, remedy),
                other => other,
            })?;
        }
        let option = match (self.lightning, self.retention) {
            (false, false) => return Ok(()),
            (true, true) => {
                return Err(Error::invalid(
                    "lightning",
                    "retention is given, too",
                    "leave one of them out",
                ));
            }
            (true, false) => "--lightning",
            (false, true) => "--retention",
        };
        if let Some(decay) = find(Slot::Decay) {
            return Err(decay.wrong(
                format!("{option} is given beside the tensor"),
                "leave one of them out",
            ));
        }
        let axis = match self.layout {
            AxisOrder::Bhsd => 1,
            AxisOrder::Bshd => 2,
        };
        let heads = find(Slot::V).and_then(|v| v.tensor.shape.get(axis).copied());
        let heads = heads.unwrap_or(0);
        let decays = if self.lightning {
            LinearAttention::lightning_decays(heads as usize, None)
        } else {
            LinearAttention::retention_decays(heads as usize)
        };
        inputs.push(Input {
            slot: Slot::Decay,
            path: option.into(),
            tensor: FileTensor {
                shape: vec![heads],
                stored: Stored::F32,
                elements: Elements::Real(decays),
            },
        });
        Ok(())
    }

    /// The op on tensors of these layouts.
    pub(super) fn op(
        &self,
        dtype: DType,
        layout: impl Fn(Slot) -> Result<Option<Layout>>,
    ) -> Result<LinearAttention> {
        let seen = |slot| -> Result<Option<Layout>> {
            Ok(layout(slot)?.map(|layout| match layout.rank() {
                3.. => self.layout.exchange(layout),
                _ => layout,
            }))
        };
        // Every slot that is needed has been found.
        let given = |slot| Ok(seen(slot)?.unwrap_or_else(|| Layout::new(dtype, [])));
        let mut op = LinearAttention::new(given(Slot::Q)?, given(Slot::K)?, given(Slot::V)?);
        let shape_in_file = self.layout.exchange(op.o.clone()).shape;
        op.o = self.layout.exchange(Layout::new(dtype, shape_in_file));
        op.scale = self.scale.map(crate::Real);
        op = op
            .features(self.feature_q.into(), self.feature_k.into())
            .reach(match self.reach {
                ReachName::Causal => Reach::Causal,
                ReachName::Before => Reach::Before,
                ReachName::All => Reach::All,
            });
        if let Some(decay) = seen(Slot::Decay)? {
            op.decay = self.decay(decay, &op)?;
        }
        if self.delta {
            let beta = seen(Slot::Beta)?;
            op.rule = UpdateRule::Delta { beta, read: None };
        }
        op.kv_len = layout(Slot::KvLen)?;
        op.cu_seqlens = layout(Slot::CuSeqlens)?;
        op.initial_state = layout(Slot::InitialState)?;
        op.initial_sum = layout(Slot::InitialSum)?;
        if let Some(eps) = self.normalised {
            op = op.normalised(eps);
        }
        Ok(if self.state {
            op.with_final_state()
        } else {
            op
        })
    }

    /// What a decay's shape says that it is of.
    fn decay(&self, layout: Layout, op: &LinearAttention) -> Result<Decay> {
        let last = |layout: &Layout| layout.shape.last().copied();
        match layout.rank() {
            1 => Ok(Decay::Head(layout)),
            3 => Ok(Decay::Token(layout)),
            4 if self.value_decay => Ok(Decay::Value(layout)),
            4 if last(&layout) == last(&op.k) => Ok(Decay::Key(layout)),
            4 if last(&layout) == last(&op.v) => Ok(Decay::Value(layout)),
            _ => Err(Error::invalid(
                "decay",
                format!("shape {:?}", layout.shape),
                "give [heads], [batch, heads, seq], or that with a last axis of key or value channels",
            )),
        }
    }
}
