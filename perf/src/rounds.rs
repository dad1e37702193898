//! Runs contenders in interleaved rounds, so that whatever else the machine does falls on all of them alike.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::bars::{Bar, Metric, Verdict};
use crate::contender::{Contender, Workload};
use crate::cpu;
use crate::env::Env;
use crate::stats::{Ratio, Summary};

/// How much to run.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds counted; one more goes before them to warm up.
    pub rounds: usize,
    /// Time of each contender in each round.
    pub time: Duration,
}

/// One contender's figures on one case.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// The contender.
    pub name: String,
    /// Operations per second, of each round.
    pub rates: Vec<f64>,
    /// Operations per second.
    pub rate: Option<Summary>,
    /// CPU microseconds per operation in the server.
    pub server_cpu_us: Option<Summary>,
    /// CPU microseconds per operation in the load generator.
    pub client_cpu_us: Option<Summary>,
    /// Median latency, microseconds.
    pub p50_us: Option<Summary>,
    /// 99th percentile of latency, microseconds.
    pub p99_us: Option<Summary>,
}

/// A case with all its contenders.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// `workload/case`.
    pub case: String,
    /// What an operation is.
    pub unit: String,
    /// Ours first.
    pub contenders: Vec<Figures>,
    /// Our rate over that of each rival, in the order of `contenders[1..]`.
    pub ratios: Vec<Option<Ratio>>,
    /// What came of the bars on this case.
    pub bars: Vec<Verdict>,
}

/// Runs the cases of `workload` that `wanted` accepts; `done` gets each as it ends.
///
/// # Errors
/// A contender failed; the message says which.
pub fn run(
    workload: &mut Workload,
    env: &Env,
    effort: Effort,
    wanted: impl Fn(&str) -> bool,
    mut done: impl FnMut(Comparison),
) -> Result<()> {
    let Workload { name, cases, unit, contenders, bars, .. } = workload;
    for contender in contenders.iter_mut() {
        contender.start(env).with_context(|| format!("cannot start {}", contender.name()))?;
    }
    for (index, short_name) in cases.iter().enumerate() {
        let case = format!("{name}/{short_name}");
        if wanted(&case) {
            let samples = measure(contenders, index, effort).with_context(|| format!("in {case}"))?;
            let bars = judge(bars.iter().filter(|bar| bar.case == *short_name), contenders, &samples);
            done(Comparison { bars, ..compare(case, unit, contenders, &samples) });
        }
    }
    for contender in contenders.iter_mut() {
        contender.stop().with_context(|| format!("cannot stop {}", contender.name()))?;
    }
    Ok(())
}

#[derive(Default)]
struct Samples {
    rates: Vec<f64>,
    server_cpu_us: Vec<f64>,
    client_cpu_us: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

fn measure(contenders: &mut [Box<dyn Contender>], case: usize, effort: Effort) -> Result<Vec<Samples>> {
    let mut samples: Vec<Samples> = contenders.iter().map(|_| Samples::default()).collect();
    for round in 0..=effort.rounds {
        for place in 0..contenders.len() {
            let turn = turn(round, place, contenders.len());
            let contender = contenders[turn].as_mut();
            if !contender.can(case) {
                continue;
            }
            let sample = one_round(contender, case, effort.time).with_context(|| contender.name())?;
            if round > 0 {
                sample.add_to(&mut samples[turn]);
            }
        }
    }
    Ok(samples)
}

/// Who runs at `place` of `round`: each round starts with another contender.
fn turn(round: usize, place: usize, contenders: usize) -> usize {
    (round + place) % contenders
}

struct Sample {
    rate: f64,
    server_cpu_us: Option<f64>,
    client_cpu_us: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
}

impl Sample {
    fn add_to(&self, samples: &mut Samples) {
        samples.rates.push(self.rate);
        samples.server_cpu_us.extend(self.server_cpu_us);
        samples.client_cpu_us.push(self.client_cpu_us);
        samples.p50_us.extend(self.p50_us);
        samples.p99_us.extend(self.p99_us);
    }
}

fn one_round(contender: &mut dyn Contender, case: usize, time: Duration) -> Result<Sample> {
    let server_cpu = |contender: &dyn Contender| contender.server_pid().map(cpu::of_process_tree).transpose();
    let before = server_cpu(contender)?;
    let work = contender.round(case, time)?;
    let after = server_cpu(contender)?;
    contender.tidy()?;
    anyhow::ensure!(work.operations > 0, "not one operation was done");
    let per_operation = |cpu: Duration| cpu.as_secs_f64() * 1e6 / work.operations as f64;
    Ok(Sample {
        rate: work.operations as f64 / work.elapsed.as_secs_f64(),
        server_cpu_us: before.zip(after).map(|(before, after)| per_operation(after - before)),
        client_cpu_us: per_operation(work.client_cpu),
        p50_us: work.p50.map(|p50| p50.as_secs_f64() * 1e6),
        p99_us: work.p99.map(|p99| p99.as_secs_f64() * 1e6),
    })
}

fn compare(case: String, unit: &str, contenders: &[Box<dyn Contender>], samples: &[Samples]) -> Comparison {
    let ratios = samples[1..].iter().map(|rival| Ratio::of(&samples[0].rates, &rival.rates)).collect();
    let figures = |contender: &dyn Contender, samples: &Samples| Figures {
        name: contender.name(),
        rates: samples.rates.clone(),
        rate: Summary::of(&samples.rates),
        server_cpu_us: Summary::of(&samples.server_cpu_us),
        client_cpu_us: Summary::of(&samples.client_cpu_us),
        p50_us: Summary::of(&samples.p50_us),
        p99_us: Summary::of(&samples.p99_us),
    };
    Comparison {
        case,
        unit: unit.to_owned(),
        contenders: contenders.iter().zip(samples).map(|(c, s)| figures(c.as_ref(), s)).collect(),
        ratios,
        bars: Vec::new(),
    }
}

/// Bars whose contenders both ran.
fn judge<'a>(
    bars: impl Iterator<Item = &'a Bar>,
    contenders: &[Box<dyn Contender>],
    samples: &[Samples],
) -> Vec<Verdict> {
    let of = |name: &str| contenders.iter().position(|c| c.name() == name).and_then(|i| samples.get(i));
    let values = |samples: &'_ Samples, metric: Metric| match metric {
        Metric::Rate => samples.rates.clone(),
        Metric::P50 => samples.p50_us.clone(),
        Metric::ServerCpu => samples.server_cpu_us.clone(),
    };
    bars.filter_map(|bar| {
        let (ours, rival) = (of(bar.ours)?, of(bar.rival)?);
        bar.judge(&values(ours, bar.metric), &values(rival, bar.metric))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bars::Bound;
    use crate::contender::Work;
    use std::cell::RefCell;
    use std::rc::Rc;

    struct Fake {
        name: &'static str,
        operations: u64,
        log: Rc<RefCell<Vec<&'static str>>>,
    }

    impl Contender for Fake {
        fn name(&self) -> String {
            self.name.to_owned()
        }
        fn start(&mut self, _: &Env) -> Result<()> {
            Ok(())
        }
        fn round(&mut self, _: usize, time: Duration) -> Result<Work> {
            self.log.borrow_mut().push(self.name);
            Ok(Work {
                operations: self.operations,
                elapsed: time,
                client_cpu: Duration::from_micros(self.operations * 2),
                p50: None,
                p99: None,
            })
        }
        fn server_pid(&self) -> Option<u32> {
            None
        }
        fn stop(&mut self) -> Result<()> {
            self.log.borrow_mut().push("stop");
            Ok(())
        }
    }

    fn workload(rival_operations: u64, log: &Rc<RefCell<Vec<&'static str>>>) -> Workload {
        let bar =
            |case, rival| Bar { case, ours: "ours", metric: Metric::Rate, bound: Bound::AtLeast(3.1), rival };
        let fake = |name, operations| Box::new(Fake { name, operations, log: Rc::clone(log) });
        Workload {
            name: "fake",
            about: String::new(),
            cases: vec!["unwanted", "wanted"],
            unit: "ops",
            contenders: vec![fake("ours", 300), fake("rival", rival_operations)],
            bars: vec![bar("wanted", "rival"), bar("wanted", "absent"), bar("unwanted", "rival")],
            missing: Vec::new(),
        }
    }

    #[test]
    fn rounds_interleave_and_the_warm_up_is_not_counted() {
        let log = Rc::default();
        let mut workload = workload(100, &log);
        let mut results = Vec::new();
        let effort = Effort { rounds: 2, time: Duration::from_secs(1) };
        let env = Env::new(Some(&std::env::temp_dir()), None).unwrap();
        run(&mut workload, &env, effort, |case| case == "fake/wanted", |result| results.push(result))
            .unwrap();
        assert_eq!(*log.borrow(), ["ours", "rival", "rival", "ours", "ours", "rival", "stop", "stop"]);
        assert_eq!(results.len(), 1);
        assert_eq!(results[0].contenders[0].rates, [300.0, 300.0]);
        assert_eq!(results[0].contenders[0].client_cpu_us.unwrap().median, 2.0);
        assert_eq!(results[0].ratios[0].unwrap().of_medians, 3.0);
        let [verdict] = &results[0].bars[..] else { panic!("one bar is on this case and its rival") };
        assert!(!verdict.held && verdict.ratio.median == 3.0);
    }

    #[test]
    fn a_contender_that_does_nothing_is_an_error() {
        let effort = Effort { rounds: 1, time: Duration::from_secs(1) };
        let env = Env::new(Some(&std::env::temp_dir()), None).unwrap();
        let error = run(&mut workload(0, &Rc::default()), &env, effort, |_| true, |_| {}).unwrap_err();
        assert_eq!(format!("{error:#}"), "in fake/unwanted: rival: not one operation was done");
    }
}
