//! A stable sort by bucket, digit by digit: histograms of chunks, sums before each entry, and elements put in order.
//! Scratch holds the histogram and the order between two digits; buckets are read where they are.

use super::{ranges::Slice, small};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        order_count::{self, Keys, MOST_BITS, WORKGROUP},
        order_scan, order_scatter, order_starts,
    },
    ops::Slot,
};

/// Elements per invocation from which chunks are made longer.
const WANTED_EACH: u64 = 16;
/// Chunks of all sequences that keep a device busy.
const WANTED_CHUNKS: u64 = 1 << 10;
/// The same on a software device.
const WANTED_SOFTWARE_CHUNKS: u64 = 1 << 4;
/// Iterations that the kernels take besides those over elements, or entries: counts set to zero and added up.
const BESIDES: u64 = 256;

/// Where the buckets of elements are: strides over batch entries, heads, rows of elements and elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyPlaces {
    pub keys: Keys,
    pub at: u32,
    pub strides: [u32; 4],
    pub width: u64,
}

impl KeyPlaces {
    fn slot(&self) -> Option<Slot> {
        match self.keys {
            Keys::X => Some(Slot::X),
            Keys::Index => Some(Slot::Index),
            Keys::Scratch => None,
        }
    }
}

/// How sequences of elements are sorted, and what of scratch that takes. Places count words per sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    n: u64,
    buckets: u64,
    bits: u32,
    passes: u32,
    each: u64,
    chunks: u64,
    scan: u32,
    histogram: u64,
    buffers: [u64; 2],
    /// Whether the order stays in scratch.
    kept: bool,
    /// The first place of scratch that it has no use for.
    pub end: u64,
}

impl Order {
    /// Of sequences of `n` elements, with scratch from `start` on; the order itself may stay there.
    pub fn new(
        [sequences, n, buckets]: [u64; 3],
        start: u64,
        kept: bool,
        caps: &Caps,
    ) -> Result<Self> {
        // The number of buckets is itself a key: that of what has no bucket.
        let all = u64::BITS - buckets.leading_zeros();
        let passes = all.div_ceil(MOST_BITS);
        let bits = all.div_ceil(passes);
        let lanes = u64::from(WORKGROUP);
        let wanted = if caps.software {
            WANTED_SOFTWARE_CHUNKS
        } else {
            WANTED_CHUNKS
        };
        let scan = if caps.software {
            64
        } else {
            256.min(caps.max_invocations)
        };
        let chunks = n
            .div_ceil(lanes * WANTED_EACH)
            .min((wanted / sequences.max(1)).max(1));
        // Elements are walked along twice.
        let budget = u64::from(caps.loop_budget).saturating_sub(BESIDES) / 2;
        let each = n.div_ceil(chunks * lanes).min(budget);
        let chunks = n.div_ceil((each * lanes).max(1));
        let entries = chunks << bits;
        if each == 0 || entries.div_ceil(scan.into()) > budget {
            return Err(Error::unsupported(
                format!("a sort of {n} elements"),
                format!(
                    "a kernel may loop {} times on this device",
                    caps.loop_budget
                ),
                "measure the device's loop budget (Engine::measure), or sort shorter rows",
            ));
        }
        let buffers = (passes - u32::from(!kept)).min(2);
        let first = start + entries;
        Ok(Self {
            n,
            buckets,
            bits,
            passes,
            each,
            chunks,
            scan,
            histogram: start,
            buffers: [first, first + n],
            kept,
            end: first + u64::from(buffers) * n,
        })
    }

    /// Where the order is, if it stays in scratch.
    pub fn place(&self) -> u64 {
        self.buffers[(self.passes as usize - 1) % 2]
    }

    /// Adds the steps; `inverse`: whether the op has an inverse of the order.
    pub fn push(&self, slice: &mut Slice<'_>, keys: KeyPlaces, inverse: bool) -> Result<()> {
        let workgroups = slice.sequences * self.chunks;
        let [keys_batch, keys_head, keys_outer, keys_inner] = keys.strides;
        for pass in 0..self.passes {
            let first = pass == 0;
            let last = pass + 1 == self.passes;
            let shift = pass * self.bits;
            let source = self.buffers[(pass as usize + 1) % 2];
            let variant = order_count::Variant {
                keys: keys.keys,
                bits: self.bits,
                first,
            };
            let params = order_count::Params {
                workgroups: small(workgroups),
                chunks: small(self.chunks),
                n: small(self.n),
                each: small(self.each),
                shift,
                histogram_at: slice.at(self.histogram),
                source_at: slice.at(source),
                heads: small(slice.heads),
                buckets: small(self.buckets),
                keys_at: keys.at,
                keys_batch,
                keys_head,
                keys_outer,
                keys_inner,
                keys_width: small(keys.width),
            };
            let mut slots: Vec<Slot> = keys.slot().into_iter().collect();
            slice.push(variant, &slots, params.bytes(), workgroups)?;

            let entries = self.chunks << self.bits;
            let variant = order_scan::Variant {
                workgroup: self.scan,
            };
            let params = order_scan::Params {
                sequences: small(slice.sequences),
                entries: small(entries),
                each: small(entries.div_ceil(self.scan.into())),
                histogram_at: slice.at(self.histogram),
            };
            slice.push(variant, &[], params.bytes(), slice.sequences)?;

            let output = last && !self.kept;
            let variant = order_scatter::Variant {
                keys: keys.keys,
                bits: self.bits,
                first,
                output,
                inverse: output && inverse,
            };
            let [indices_at, indices_batch, indices_head, indices_place, _] =
                slice.places(Slot::Indices);
            let [inverse_at, inverse_batch, inverse_head, inverse_element, _] =
                slice.places(Slot::Inverse);
            let params = order_scatter::Params {
                workgroups: small(workgroups),
                chunks: small(self.chunks),
                n: small(self.n),
                each: small(self.each),
                shift,
                histogram_at: slice.at(self.histogram),
                source_at: slice.at(source),
                target_at: slice.at(self.buffers[pass as usize % 2]),
                heads: small(slice.heads),
                buckets: small(self.buckets),
                keys_at: keys.at,
                keys_batch,
                keys_head,
                keys_outer,
                keys_inner,
                keys_width: small(keys.width),
                indices_at,
                indices_batch,
                indices_head,
                indices_place,
                inverse_at,
                inverse_batch,
                inverse_head,
                inverse_element,
            };
            slots.extend(variant.output.then_some(Slot::Indices));
            slots.extend(variant.inverse.then_some(Slot::Inverse));
            slice.push(variant, &slots, params.bytes(), workgroups)?;
        }
        Ok(())
    }

    /// Adds the step that finds where buckets begin: in the tensor `starts`, or where the order is in scratch, at this
    /// place, [sequences, buckets + 1].
    pub fn push_starts(&self, slice: &mut Slice<'_>, keys: KeyPlaces, place: u64) -> Result<()> {
        let invocations = slice.sequences * (self.buckets + 1);
        let variant = order_starts::Variant {
            keys: keys.keys,
            output: !self.kept,
        };
        let [keys_batch, keys_head, keys_outer, keys_inner] = keys.strides;
        let [indices_at, indices_batch, indices_head, indices_place, _] =
            slice.places(Slot::Indices);
        let [starts_at, starts_batch, starts_head, starts_bucket, _] = slice.places(Slot::Starts);
        let params = order_starts::Params {
            invocations: small(invocations),
            n: small(self.n),
            order_at: slice.at(self.place()),
            starts_at: if self.kept {
                slice.at(place)
            } else {
                starts_at
            },
            starts_batch,
            starts_head,
            starts_bucket,
            heads: small(slice.heads),
            buckets: small(self.buckets),
            keys_at: keys.at,
            keys_batch,
            keys_head,
            keys_outer,
            keys_inner,
            keys_width: small(keys.width),
            indices_at,
            indices_batch,
            indices_head,
            indices_place,
        };
        let mut slots: Vec<Slot> = keys.slot().into_iter().collect();
        if !self.kept {
            slots.extend([Slot::Indices, Slot::Starts]);
        }
        let workgroups = invocations.div_ceil(order_starts::WORKGROUP.into());
        slice.push(variant, &slots, params.bytes(), workgroups)
    }
}
