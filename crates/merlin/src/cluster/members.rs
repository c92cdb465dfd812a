//! `merlin cluster status` and `members`: who is in the cluster and how it is.

use std::process::ExitCode;

use merlin_proto::v1::{DescribeRequest, DescribeResponse};

use super::failure::Failure;
use super::{ClusterArgs, tables};

/// Writes are possible, but an operator has to see to something.
const DEGRADED: u8 = 1;
/// Nothing can be decided from here.
const NO_WRITES: u8 = 2;

pub(super) async fn status(args: &ClusterArgs) -> Result<ExitCode, Failure> {
    let described = describe(args).await?;
    args.print(&described, tables::status)?;
    Ok(code(&described))
}

pub(super) async fn members(args: &ClusterArgs) -> Result<ExitCode, Failure> {
    args.print(&describe(args).await?, tables::members)?;
    Ok(ExitCode::SUCCESS)
}

async fn describe(args: &ClusterArgs) -> Result<DescribeResponse, Failure> {
    let mut cluster = args.connect().await?;
    let request = args.request(DescribeRequest { local: false });
    Ok(cluster.describe(request).await?.into_inner())
}

fn code(cluster: &DescribeResponse) -> ExitCode {
    ExitCode::from(if !cluster.unavailable.is_empty() {
        NO_WRITES
    } else if !cluster.warnings.is_empty() {
        DEGRADED
    } else {
        0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_fine_from_degraded_from_no_writes() {
        let cluster = |unavailable: &str, warnings: &[&str]| DescribeResponse {
            unavailable: unavailable.into(),
            warnings: warnings.iter().map(|&warning| warning.into()).collect(),
            notes: vec!["two voters".into()],
            ..Default::default()
        };
        assert_eq!(code(&cluster("", &[])), ExitCode::SUCCESS);
        assert_eq!(code(&cluster("", &["x"])), ExitCode::from(DEGRADED));
        assert_eq!(code(&cluster("no", &["x"])), ExitCode::from(NO_WRITES));
    }
}
