//! How many of the best elements of each row their share of its mass asks for.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Invocations per workgroup.
    pub workgroup: u32,
    /// Whether masses are exponentials; else elements themselves.
    pub softmax: bool,
    /// Whether rows have lengths of their own.
    pub lens: bool,
    /// Whether counts are written.
    pub counts: bool,
    /// Whether the best comes first.
    pub sorted: bool,
    /// f16 storage.
    pub f16: bool,
}

impl Variant {
    /// Workgroup memory, in bytes.
    pub fn workgroup_bytes(&self) -> u32 {
        8 * self.workgroup + 8
    }

    /// Iterations of all loops of an invocation, the checks that end them counted.
    pub fn iterations(&self, share: u64, most: u64) -> u64 {
        let workgroup = u64::from(self.workgroup);
        let places = most.next_power_of_two();
        let turns = |count: u64| count.div_ceil(workgroup) + 1;
        let sort = if self.sorted {
            0
        } else {
            let stages = u64::from(places.ilog2()) + 1;
            stages + stages * stages * turns(places / 2)
        };
        share + 1 + 2 * turns(most) + workgroup + 1 + turns(places) + sort + turns(most)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", self.workgroup),
            ("SOFTMAX", self.softmax.into()),
            ("LENS", self.lens.into()),
            ("COUNTS", self.counts.into()),
            ("SORTED", self.sorted.into()),
            ("SKIP", 1),
            ("F16", self.f16.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, self.f16, self.workgroup, 5)
    }
}

params! {
    /// Parameters of the count.
    Params {
        rows: u32, length: u32, share: u32, least: u32, most: u32, list_share: u32, places: u32, p: f32,
        size_1: u32, size_2: u32,
        x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
        len_at: u32, len_0: u32, len_1: u32, len_2: u32,
        indices_at: u32, indices_0: u32, indices_1: u32, indices_2: u32, indices_element: u32,
        counts_at: u32, counts_0: u32, counts_1: u32, counts_2: u32,
        list_at: u32,
    }
}
