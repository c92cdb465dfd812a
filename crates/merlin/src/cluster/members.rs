//! `merlin cluster status` and `members`: who is in the cluster and how it is.

use std::process::ExitCode;

use merlin_proto::v1::DescribeRequest;

use super::failure::Failure;
use super::{ClusterArgs, tables};

pub(super) async fn status(args: &ClusterArgs) -> Result<ExitCode, Failure> {
    let mut cluster = args.connect().await?;
    let described = cluster.describe(args.request(DescribeRequest {})).await?;
    let described = described.into_inner();
    args.print(&described, tables::status)?;
    if described.unavailable.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::FAILURE)
    }
}

pub(super) async fn members(args: &ClusterArgs) -> Result<ExitCode, Failure> {
    let mut cluster = args.connect().await?;
    let described = cluster.describe(args.request(DescribeRequest {})).await?;
    args.print(&described.into_inner(), tables::members)?;
    Ok(ExitCode::SUCCESS)
}
