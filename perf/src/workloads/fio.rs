//! fio as a load generator.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::contender::Work;

/// Runs `fio` with `args` and one job; its operations are reads and writes together.
///
/// # Errors
/// fio fails, or an operation does, or its JSON is not understood.
pub fn run(args: &[String]) -> Result<Work> {
    let output = vexfs_harness::fio("fio")
        .args(["--output-format=json", "--name=perf"])
        .args(args)
        .output()
        .context("cannot run fio")?;
    if !output.status.success() {
        bail!("fio {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // fio may print notes before the JSON.
    let json = text.get(text.find('{').unwrap_or(0)..).unwrap_or_default();
    let report: Value = serde_json::from_str(json).context("fio's output is not JSON")?;
    parse(&report)
}

fn parse(report: &Value) -> Result<Work> {
    let job = &report["jobs"][0];
    let number = |value: &Value| value.as_f64().context("fio's JSON has an unknown form");
    let error = number(&job["error"])?;
    anyhow::ensure!(error == 0.0, "fio says error {error}");
    let mut operations = 0.0;
    let mut runtime_ms: f64 = 0.0;
    let (mut p50_ns, mut p99_ns): (f64, f64) = (0.0, 0.0);
    for direction in ["read", "write"] {
        operations += number(&job[direction]["total_ios"])?;
        runtime_ms = runtime_ms.max(number(&job[direction]["runtime"])?);
        let percentile = |name: &str| job[direction]["clat_ns"]["percentile"][name].as_f64().unwrap_or(0.0);
        p50_ns = p50_ns.max(percentile("50.000000"));
        p99_ns = p99_ns.max(percentile("99.000000"));
    }
    // usr_cpu and sys_cpu are percents of the job's run time.
    let cpu_percent = number(&job["usr_cpu"])? + number(&job["sys_cpu"])?;
    let job_ms = number(&job["job_runtime"])?;
    Ok(Work {
        operations: operations as u64,
        elapsed: Duration::from_secs_f64(runtime_ms / 1e3),
        client_cpu: Duration::from_secs_f64(job_ms / 1e3 * cpu_percent / 100.0),
        p50: Some(Duration::from_secs_f64(p50_ns / 1e9)),
        p99: Some(Duration::from_secs_f64(p99_ns / 1e9)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_is_understood() {
        let idle = json!({"total_ios": 0, "runtime": 0, "clat_ns": {}});
        let busy = json!({"total_ios": 500, "runtime": 2000, "clat_ns": {"percentile": {"50.000000": 400.0, "99.000000": 1500.0}}});
        let job = json!({"error": 0, "read": idle, "write": busy, "usr_cpu": 10.0, "sys_cpu": 15.0, "job_runtime": 2000});
        let work = parse(&json!({"jobs": [job]})).unwrap();
        assert_eq!(work.operations, 500);
        assert_eq!(work.elapsed, Duration::from_secs(2));
        assert_eq!(work.client_cpu, Duration::from_millis(500));
        assert_eq!(work.p50, Some(Duration::from_nanos(400)));
        assert_eq!(work.p99, Some(Duration::from_nanos(1500)));
    }

    #[test]
    fn an_unknown_form_is_an_error_not_a_zero() {
        assert!(parse(&json!({"jobs": []})).is_err());
        assert!(parse(&json!({"jobs": [{"error": 5}]})).is_err());
    }
}
