//! Where host time goes: plan, bind, record, submit; and compilation, before the first result.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Call, Error, Gpu, Plan, Result, engine::wait, pipeline::checked};

/// Host time of one op, call by call.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Profile {
    /// The first plan, with the creation of its pipelines, in ms.
    pub create_ms: f64,
    /// The first dispatch, in which some drivers compile, with the op itself, in ms.
    pub first_ms: f64,
    /// A plan whose pipelines are there, in microseconds.
    pub plan_us: f64,
    /// Binding tensors, in microseconds.
    pub bind_us: f64,
    /// Recording one call into a pass that is open, in microseconds.
    pub record_us: f64,
    /// Submitting an encoder with one call, without waiting, in microseconds.
    pub submit_us: f64,
    /// Pipelines created after the first plan, by planning again or by running: 0, or something is
    /// not cached.
    pub late_pipelines: u64,
}

/// Repetitions of what takes microseconds.
const REPEATS: u32 = 64;

impl Profile {
    /// Measures all but `late_pipelines`. The call must not have run before.
    pub(super) fn new(
        gpu: &Gpu,
        create: Duration,
        call: Option<&Call>,
        plan: impl Fn() -> Result<Plan>,
        bind: impl Fn() -> Result<Option<Call>>,
    ) -> Result<Self> {
        let Some(call) = call else {
            return Ok(Self::default());
        };
        let start = Instant::now();
        gpu.run(call)?;
        let first = start.elapsed();

        let start = Instant::now();
        for _ in 0..REPEATS {
            plan()?;
        }
        let planned = start.elapsed() / REPEATS;
        // One at a time: each holds its scratch.
        let mut binding = Duration::ZERO;
        for _ in 0..REPEATS {
            let start = Instant::now();
            let bound = bind()?;
            binding += start.elapsed();
            drop(bound);
        }
        let binding = binding / REPEATS;

        let (recording, submitting, index) = checked(gpu.device(), || {
            // The first call of a pass sets it up.
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            let recording = {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                call.record(&mut pass);
                let start = Instant::now();
                for _ in 0..REPEATS {
                    call.record(&mut pass);
                }
                start.elapsed() / REPEATS
            };
            drop(encoder);
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            call.record(&mut encoder.begin_compute_pass(&Default::default()));
            let buffer = encoder.finish();
            let start = Instant::now();
            let index = gpu.queue().submit([buffer]);
            (recording, start.elapsed(), index)
        })
        .map_err(Error::Device)?;
        wait(gpu.device(), index)?;
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        Ok(Self {
            create_ms: us(create) / 1e3,
            first_ms: us(first) / 1e3,
            plan_us: us(planned),
            bind_us: us(binding),
            record_us: us(recording),
            submit_us: us(submitting),
            late_pipelines: 0,
        })
    }
}
