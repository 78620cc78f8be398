//! Matrix attention: products by cooperative matrices, tiles in workgroup memory.

use serde::{Deserialize, Serialize};

use super::AttentionIo;
pub use super::AttentionParams as Params;
use crate::{
    caps::{Caps, MatrixShape},
    shader::Constants,
};

/// Subgroups that own rows; a test ties it to the WGSL.
pub const GROUPS: u32 = 4;
/// Lanes of an emulated subgroup: what most hardware has.
const EMULATED_LANES: u32 = 32;
/// Rows of a workgroup and keys of a tile, the best first: the more rows, the fewer loads of each
/// matrix of keys and values; the fewer keys, the less workgroup memory.
const TILES: [(u32, u32); 5] = [(128, 32), (64, 32), (64, 16), (32, 16), (32, 8)];
/// Elements of a row past which the matrices of 128 rows no longer fit the registers.
const WIDE_ROW: u32 = 128;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Rows and columns of a matrix.
    pub side: u32,
    /// Loops in place of matrix instructions.
    pub emulated: bool,
    /// Lanes of the largest subgroup that the device may choose.
    pub lanes: u32,
    /// Strips of `side` rows per subgroup.
    pub strips: u32,
    /// Keys of a tile.
    pub keys: u32,
    /// Matrices along a row of q and k.
    pub d_steps: u32,
    /// Matrices along a row of v and o.
    pub v_steps: u32,
    /// Whether q, k, v and o are read and written four elements at a time.
    pub vec4: bool,
    /// What it reads and writes.
    pub io: AttentionIo,
}

impl Variant {
    /// The largest tile that suits the rows and that the workgroup memory holds; the smallest where
    /// none does, which `supports` then refuses.
    pub fn new(
        shape: MatrixShape,
        caps: &Caps,
        io: AttentionIo,
        (rows, head_dim, value_dim): (u64, u32, u32),
    ) -> Self {
        let side = shape.side.max(1);
        let lanes = match caps.subgroup {
            _ if shape.emulated => EMULATED_LANES,
            Some((_, largest)) => largest,
            None => 0,
        };
        let mut variant = Self {
            side,
            emulated: shape.emulated,
            lanes,
            strips: 1,
            keys: 16,
            d_steps: head_dim.div_ceil(side),
            v_steps: value_dim.div_ceil(side),
            vec4: false,
            io,
        };
        for (tile_rows, keys) in TILES {
            variant.strips = (tile_rows / (GROUPS * side)).max(1);
            variant.keys = keys.max(side);
            let wide = head_dim.max(value_dim) > WIDE_ROW;
            let suits = tile_rows <= 64 || (rows > 64 && !wide);
            if suits && variant.workgroup_bytes() <= caps.workgroup_bytes {
                break;
            }
        }
        variant
    }

    /// Packed rows per workgroup.
    pub fn tile_rows(&self) -> u32 {
        GROUPS * self.strips * self.side
    }

    /// Invocations per workgroup.
    pub fn threads(&self) -> u32 {
        GROUPS * self.lanes
    }

    /// Fours of elements in padded rows of q and k, and of v and o.
    fn fours(&self) -> [u32; 2] {
        [self.d_steps, self.v_steps].map(|steps| steps * self.side / 4)
    }

    /// Workgroup memory, in bytes.
    pub fn workgroup_bytes(&self) -> u32 {
        let four = if self.io.f16 { 8 } else { 16 };
        let [d4, v4] = self.fours();
        let rows = self.tile_rows();
        let keys4 = self.keys / 4;
        let tiles = self.keys * (d4 + 2 + v4 + 2) * four;
        let weights = rows * (keys4 + 2) * four;
        let scores = rows * (keys4 + 1) * 16;
        tiles + weights + scores + rows * 4 + 4
    }

    /// Loop iterations for a number of keys, those of all loops within counted.
    pub fn iterations(&self, keys: u64) -> u64 {
        let [d4, v4] = self.fours();
        let threads = self.threads().max(1);
        let shared = |count: u32| u64::from(count.div_ceil(threads));
        let steps = u64::from(self.keys / self.side);
        let [strips, d_steps, v_steps] = [self.strips, self.d_steps, self.v_steps].map(u64::from);
        let loads = shared(self.keys * d4) + shared(self.keys * v4);
        let chunks = v_steps.div_ceil(steps.max(1));
        let scaled = shared(self.tile_rows() * self.keys / 4);
        let (scores, values, rescale) = if self.emulated {
            // Loops over the matrices of a row, and within each product.
            let side = u64::from(self.side);
            (
                1 + steps * (1 + d_steps * (1 + strips * side)),
                1 + steps * (1 + v_steps * (1 + strips * side)),
                1 + chunks * (3 + scaled) + 2 * v_steps * strips,
            )
        } else {
            (1 + steps, 1 + steps, 1 + chunks * (2 + scaled))
        };
        keys.div_ceil(self.keys.into()) * (1 + loads + scores + values + rescale)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.io.constants();
        list.extend([
            ("VEC4", self.vec4.into()),
            // Larger matrices are Vulkan's alone, which loads them through pointers to vectors.
            ("WIDE", (self.side == 16).into()),
            ("EMULATED", self.emulated.into()),
            ("SIDE", self.side),
            ("LANES", self.lanes),
            ("STRIPS", self.strips),
            ("KEYS", self.keys),
            ("D_STEPS", self.d_steps),
            ("V_STEPS", self.v_steps),
        ]);
        list
    }

    fn mods(&self) -> &'static str {
        self.io.mods.text()
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.io.lists {
            return Err(
                "matrices are staged from keys side by side, and lists have them anywhere".into(),
            );
        }
        let shape = MatrixShape {
            side: self.side,
            f16: self.io.f16,
            emulated: self.emulated,
        };
        let float = if shape.f16 { "f16" } else { "f32" };
        if !matches!(self.side, 8 | 16) || !caps.matrices.contains(&shape) {
            let side = self.side;
            return Err(format!(
                "the device has no {side}x{side} matrices of {float} with sums in f32"
            ));
        }
        if self.io.f16 && self.io.mods.has_prob() {
            return Err(
                "a prob_mod may make weights of any size, and matrices take them as f16".into(),
            );
        }
        if !self.emulated {
            match caps.subgroup {
                None => return Err("the device has no subgroup operations".into()),
                Some((_, largest)) if largest != self.lanes => {
                    return Err(format!("subgroups may have {largest} lanes"));
                }
                Some(_) => {}
            }
        }
        if self.threads() > caps.max_invocations {
            return Err(format!(
                "{} invocations per workgroup, and the device allows {}",
                self.threads(),
                caps.max_invocations
            ));
        }
        if self.workgroup_bytes() > caps.workgroup_bytes {
            return Err(format!(
                "{} bytes of workgroup memory, and the device has {}",
                self.workgroup_bytes(),
                caps.workgroup_bytes
            ));
        }
        self.io.supports(caps)
    }
}
