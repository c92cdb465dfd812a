//! `meradm login`, `logout` and `contexts`: which clusters this user is a client of.

use std::time::SystemTime;

use merlin_client::{Context, Contexts, ContextsError};
use serde::Serialize;

use crate::cli::{Global, Login};
use crate::failure::{Failure, say};
use crate::{output, table};

pub(super) fn login(args: &Login) -> Result<(), Failure> {
    let context = Context::read(&args.file).map_err(ContextsError::from)?;
    let name = args.name.as_ref().unwrap_or(&context.client);
    Contexts::of_user().add(name, &context)?;
    say(&format!(
        "meradm: context {name} is in use: {} ({}) of cluster {}; the file itself is not needed any \
         more",
        context.client, context.role, context.cluster_id
    ));
    Ok(())
}

pub(super) fn logout(name: Option<String>) -> Result<(), Failure> {
    let contexts = Contexts::of_user();
    let Some(name) = name.map_or_else(|| contexts.current(), |name| Ok(Some(name)))? else {
        say("meradm: no context is in use");
        return Ok(());
    };
    contexts.remove(&name)?;
    say(&format!("meradm: context {name} is forgotten"));
    Ok(())
}

/// A context, for programs and for the table.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    pub(crate) name: String,
    /// Whether it is in use.
    pub(crate) current: bool,
    pub(crate) client: String,
    pub(crate) role: String,
    pub(crate) cluster: String,
    pub(crate) expires: String,
    pub(crate) nodes: Vec<String>,
    /// Why the context is of no use; empty when it is.
    pub(crate) error: String,
}

pub(super) fn list(global: &Global, choose: Option<&str>) -> Result<(), Failure> {
    let contexts = Contexts::of_user();
    if let Some(name) = choose {
        contexts.choose(name)?;
    }
    let current = contexts.current()?;
    let listed = |name: String| {
        let current = current.as_ref() == Some(&name);
        match contexts.get(&name) {
            Ok(context) => Listed {
                current,
                error: match context.expires() {
                    Some(at) if at <= SystemTime::now() => "the certificate has expired".to_owned(),
                    _ => String::new(),
                },
                expires: context
                    .expires()
                    .map(|at| table::time(Some(&at.into())))
                    .unwrap_or_default(),
                name,
                client: context.client,
                role: context.role,
                cluster: context.cluster_id,
                nodes: context.nodes,
            },
            Err(error) => Listed {
                name,
                current,
                client: String::new(),
                role: String::new(),
                cluster: String::new(),
                expires: String::new(),
                nodes: Vec::new(),
                error: error.to_string(),
            },
        }
    };
    let listed: Vec<_> = contexts.names()?.into_iter().map(listed).collect();
    output::print(global.output, || table::contexts(&listed), &listed)?;
    Ok(())
}
