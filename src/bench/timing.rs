//! Timing a call: wall time, and GPU time where the device has timestamps.

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Call, Error, Gpu, Result,
    engine::{read_buffer, wait},
    pipeline::checked,
};

/// Median and spread of repeated measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    /// Half are below: the middle one, or half way between the two in the middle.
    pub median: f64,
    /// A tenth are below.
    pub p10: f64,
    /// A tenth are above.
    pub p90: f64,
    /// How many there were.
    pub runs: usize,
}

impl Spread {
    /// The spread of some measurements; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (share * (values.len().checked_sub(1)? as f64)).round() as usize;
            values.get(place).copied()
        };
        let upper = values.get(values.len() / 2).copied()?;
        let lower = values.get((values.len() - 1) / 2).copied()?;
        Some(Self {
            median: lower + (upper - lower) / 2.0,
            p10: at(0.1)?,
            p90: at(0.9)?,
            runs: values.len(),
        })
    }

    /// The same measurements in another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            median: self.median * factor,
            p10: self.p10 * factor,
            p90: self.p90 * factor,
            runs: self.runs,
        }
    }
}

/// How long a call took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// From recording to the end of the wait.
    pub wall: Spread,
    /// Between timestamps around the pass, where the device has them.
    pub gpu: Option<Spread>,
}

impl Timing {
    /// The median that counts: GPU time where there is any, else wall time.
    pub fn median(&self) -> f64 {
        self.gpu.map_or(self.wall.median, |gpu| gpu.median)
    }
}

/// Runs the calls in turn, `runs` times in all after one round that does not count, and times each
/// run. Several calls on tensors of their own keep inputs out of the cache.
///
/// # Errors
/// [`Error::Device`] when a launch fails.
pub fn time(gpu: &Gpu, calls: &[Call], runs: usize) -> Result<Timing> {
    for call in calls {
        gpu.run(call)?;
    }
    let timer = Timer::new(gpu)?;
    let samples = calls
        .iter()
        .cycle()
        .take(runs.max(1))
        .map(|call| timer.run(call))
        .collect::<Result<Vec<_>>>()?;
    Timing::of(&samples)
}

/// How long one run took, in ms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lap {
    /// From recording to the end of the wait.
    pub wall: f64,
    /// Between timestamps around the pass, where the device has them and its clock moved.
    pub gpu: Option<f64>,
}

impl Lap {
    /// The time that counts: GPU time where there is any, else wall time.
    pub fn ms(&self) -> f64 {
        self.gpu.unwrap_or(self.wall)
    }
}

impl Timing {
    /// The spread of some runs.
    ///
    /// # Errors
    /// [`Error::Invalid`] of none.
    pub fn of(laps: &[Lap]) -> Result<Self> {
        let wall = Spread::of(laps.iter().map(|lap| lap.wall).collect());
        Ok(Self {
            wall: wall.ok_or_else(|| Error::invalid("runs", "0", "run at least once"))?,
            // A device whose clock stood still, if only at times, has no timestamps worth showing.
            gpu: laps
                .iter()
                .map(|lap| lap.gpu)
                .collect::<Option<Vec<_>>>()
                .and_then(Spread::of),
        })
    }
}

/// Times runs of calls, one by one.
#[derive(Debug)]
pub struct Timer<'a> {
    gpu: &'a Gpu,
    stamps: Option<Stamps>,
}

impl<'a> Timer<'a> {
    /// A timer of calls on this device.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn new(gpu: &'a Gpu) -> Result<Self> {
        Ok(Self {
            gpu,
            stamps: Stamps::new(gpu)?,
        })
    }

    /// Runs a call and waits for it.
    ///
    /// # Errors
    /// [`Error::Device`] when the launch fails.
    pub fn run(&self, call: &Call) -> Result<Lap> {
        let Self { gpu, stamps } = self;
        let start = Instant::now();
        let index = checked(gpu.device(), || {
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: Some("timed"),
                    timestamp_writes: stamps.as_ref().map(Stamps::writes),
                });
                call.record(&mut pass);
            }
            if let Some(stamps) = stamps {
                encoder.resolve_query_set(&stamps.set, 0..2, &stamps.buffer, 0);
            }
            gpu.queue().submit([encoder.finish()])
        })
        .map_err(Error::Device)?;
        wait(gpu.device(), index)?;
        let wall = start.elapsed().as_secs_f64() * 1e3;
        let gpu = match stamps {
            Some(stamps) => stamps.milliseconds(gpu)?.filter(|&ms| ms > 0.0),
            None => None,
        };
        Ok(Lap { wall, gpu })
    }
}

#[derive(Debug)]
struct Stamps {
    set: wgpu::QuerySet,
    buffer: wgpu::Buffer,
}

impl Stamps {
    fn new(gpu: &Gpu) -> Result<Option<Self>> {
        if !gpu
            .device()
            .features()
            .contains(wgpu::Features::TIMESTAMP_QUERY)
        {
            return Ok(None);
        }
        checked(gpu.device(), || {
            Some(Self {
                set: gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                    label: Some("timed"),
                    ty: wgpu::QueryType::Timestamp,
                    count: 2,
                }),
                buffer: gpu.device().create_buffer(&wgpu::BufferDescriptor {
                    label: Some("timestamps"),
                    size: 16,
                    usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                    mapped_at_creation: false,
                }),
            })
        })
        .map_err(Error::Device)
    }

    fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    fn milliseconds(&self, gpu: &Gpu) -> Result<Option<f64>> {
        let bytes = read_buffer(gpu.device(), gpu.queue(), &self.buffer, 0, 16)?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
        let period = f64::from(gpu.queue().get_timestamp_period());
        Ok(ticks
            .get(1)
            .zip(ticks.first())
            .and_then(|(end, start)| end.checked_sub(*start))
            .map(|ticks| ticks as f64 * period / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_median_is_in_the_middle() {
        let median = |values: &[f64]| Spread::of(values.to_vec()).map(|spread| spread.median);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[4.0]), Some(4.0));
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }
}
