//! Values of arguments that clap does not know.

use std::ffi::OsStr;
use std::net::SocketAddr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, Error};
use merlin_model::Netmask;

/// Any text, with the known values offered by help and completions. What is valid is for the node
/// to say, which may be newer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known(pub(crate) &'static [&'static str]);

impl TypedValueParser for Known {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().copied().map(PossibleValue::new)))
    }
}

pub(crate) fn ip_port(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "an address and port such as 10.0.0.1:80 or [fd00::1]:80 is needed".to_owned())
}

pub(crate) fn netmask(text: &str) -> Result<Netmask, String> {
    text.parse()
        .map_err(|invalid: merlin_model::Invalid| invalid.reason)
}
