//! One file per kernel, named like its file in `shaders/`: its variants, parameters and needs.

pub mod aft_full;
pub mod attention_decode;
pub mod attention_mass;
pub mod attention_matrix;
pub mod attention_merge;
pub mod attention_subgroup;
pub mod attention_tile;
pub mod attention_weights;
pub mod ceiling_fma;
pub mod ceiling_matrix;
pub mod ceiling_stream;
pub mod ceiling_workgroup;
pub mod cluster_assign;
pub mod cluster_join;
pub mod divergence;
pub mod evict;
pub mod flow_read;
pub mod gather;
pub mod hrr_attention;
pub mod linear_attention;
pub mod linear_attention_join;
pub mod linear_attention_quadratic;
pub mod linear_attention_step;
pub mod list_sums;
pub mod loop_count;
pub mod order_count;
pub mod order_scan;
pub mod order_scatter;
pub mod order_starts;
pub mod pool;
pub mod random_features;
pub mod range_join;
pub mod range_sums;
pub mod rotary;
pub mod route_lists;
pub mod route_ranks;
pub mod route_rows;
pub mod route_scores_subgroup;
pub mod route_scores_tile;
pub mod scan;
pub mod scan_join;
pub mod scan_scores;
pub mod scatter;
pub mod short_conv;
pub mod short_conv_state;
pub mod softmax;
pub mod top_k;
pub mod top_k_gather;
pub mod top_k_groups;
pub mod top_k_rows;
pub mod top_p;
pub mod vertical_slash;

mod attention;
mod features;
mod route;
mod route_scores;

pub use attention::{AttentionIo, AttentionParams};
pub use features::Feature;
pub use route::{ROUTE_WORKGROUP, RouteIo, RouteOutputs, RouteParams};
pub use route_scores::{ScoresIo, ScoresParams};

use serde::{Deserialize, Serialize};

use crate::{
    caps::Caps,
    shader::{self, Constants, Shader},
};

/// What every kernel's variant says about itself.
pub trait Variant {
    /// The numbers and flags that the WGSL file asks for.
    fn constants(&self) -> Constants;

    /// Functions in WGSL that go where the file says `//@mods`.
    fn mods(&self) -> &'static str {
        ""
    }

    /// Whether a device can run it.
    ///
    /// # Errors
    /// Why it cannot.
    fn supports(&self, caps: &Caps) -> Result<(), String>;
}

/// Whether a device has what most kernels need: f16 where they store it, so many invocations per workgroup, and so
/// many storage buffers.
fn fits(caps: &Caps, f16: bool, workgroup: u32, buffers: u32) -> Result<(), String> {
    if f16 && !caps.f16 {
        return Err("the device has no f16 (SHADER_F16)".into());
    }
    if workgroup > caps.max_invocations {
        return Err(format!(
            "{workgroup} invocations per workgroup, and the device allows {}",
            caps.max_invocations
        ));
    }
    if buffers > caps.max_storage_buffers {
        return Err(format!(
            "{buffers} storage buffers, and the device allows {}",
            caps.max_storage_buffers
        ));
    }
    Ok(())
}

/// Declares the registry: one word per kernel gives its stem, its WGSL and its place in [`Kernel`].
macro_rules! registry {
    ($($stem:ident: $name:ident),* $(,)?) => {
        /// A kernel and its variant: with the device, all that decides what is compiled.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kernel {
            $(
                #[doc = concat!("`shaders/", stringify!($stem), ".wgsl`")]
                $name($stem::Variant),
            )*
        }

        $(
            impl From<$stem::Variant> for Kernel {
                fn from(variant: $stem::Variant) -> Self {
                    Self::$name(variant)
                }
            }
        )*

        impl Kernel {
            /// The stem of the kernel's file, also its label and the word for it in messages.
            pub fn stem(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($stem),)*
                }
            }

            fn source(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => {
                        include_str!(concat!("../../shaders/", stringify!($stem), ".wgsl"))
                    })*
                }
            }

            fn variant(&self) -> &dyn Variant {
                match self {
                    $(Self::$name(variant) => variant,)*
                }
            }

            /// Names and types of the parameters, as the WGSL struct must have them.
            pub fn param_fields(&self) -> &'static [(&'static str, &'static str)] {
                match self {
                    $(Self::$name(_) => $stem::Params::FIELDS,)*
                }
            }
        }

        /// The stems of all kernels.
        pub const STEMS: &[&str] = &[$(stringify!($stem)),*];
    };
}

registry! {
    attention_subgroup: AttentionSubgroup,
    attention_decode: AttentionDecode,
    attention_tile: AttentionTile,
    attention_matrix: AttentionMatrix,
    attention_merge: AttentionMerge,
    attention_weights: AttentionWeights,
    attention_mass: AttentionMass,
    linear_attention: LinearAttention,
    linear_attention_join: LinearAttentionJoin,
    linear_attention_step: LinearAttentionStep,
    linear_attention_quadratic: LinearAttentionQuadratic,
    softmax: Softmax,
    random_features: RandomFeatures,
    rotary: Rotary,
    short_conv: ShortConv,
    short_conv_state: ShortConvState,
    scan: Scan,
    scan_join: ScanJoin,
    scan_scores: ScanScores,
    range_sums: RangeSums,
    range_join: RangeJoin,
    flow_read: FlowRead,
    hrr_attention: HrrAttention,
    aft_full: AftFull,
    top_k: TopK,
    top_k_groups: TopKGroups,
    top_k_gather: TopKGather,
    gather: Gather,
    list_sums: ListSums,
    cluster_assign: ClusterAssign,
    cluster_join: ClusterJoin,
    evict: Evict,
    order_count: OrderCount,
    order_scan: OrderScan,
    order_scatter: OrderScatter,
    order_starts: OrderStarts,
    top_k_rows: TopKRows,
    pool: Pool,
    route_rows: RouteRows,
    route_ranks: RouteRanks,
    route_lists: RouteLists,
    route_scores_subgroup: RouteScoresSubgroup,
    route_scores_tile: RouteScoresTile,
    top_p: TopP,
    vertical_slash: VerticalSlash,
    divergence: Divergence,
    scatter: Scatter,
    ceiling_fma: CeilingFma,
    ceiling_stream: CeilingStream,
    ceiling_matrix: CeilingMatrix,
    ceiling_workgroup: CeilingWorkgroup,
    loop_count: LoopCount,
}

impl Kernel {
    /// The final WGSL.
    ///
    /// # Errors
    /// What is wrong with the file or the variant: a bug in this crate.
    pub fn shader(&self) -> Result<Shader, String> {
        let variant = self.variant();
        shader::build(self.source(), &variant.constants(), variant.mods())
    }

    /// Whether a device can run this variant.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn supports(&self, caps: &Caps) -> Result<(), String> {
        self.variant().supports(caps)
    }
}

/// Declares a kernel's uniform parameters: scalars, in the order of the WGSL struct, starting at 0.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, encase::ShaderType)]
        #[allow(missing_docs, reason = "the WGSL struct of the same name says what each field is")]
        pub struct $name {
            $(pub $field: $kind),*
        }

        impl $name {
            /// Names and types of the fields.
            pub const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), stringify!($kind))),*];

            /// The uniform buffer's content.
            pub fn bytes(&self) -> Vec<u8> {
                let mut buffer = encase::UniformBuffer::new(Vec::new());
                // Writing to a growing Vec cannot fail.
                let _ = buffer.write(self);
                buffer.into_inner()
            }
        }
    };
}
use params;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_shader_file_is_registered() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .expect("shaders/ is there")
            .filter_map(|entry| {
                let name = entry.expect("readable").file_name().into_string().ok()?;
                name.strip_suffix(".wgsl").map(str::to_owned)
            })
            .collect();
        let stems: BTreeSet<String> = STEMS.iter().map(|&stem| stem.to_owned()).collect();
        assert_eq!(files, stems);
    }
}
