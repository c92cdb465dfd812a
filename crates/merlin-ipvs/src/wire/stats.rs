//! Counters: `IPVS_STATS_ATTR_*`, in the 32-bit form of old and the 64-bit form of new kernels.

use merlin_model::table::Counters;

use super::netlink::{Attributes, Malformed, fixed};

const CONNECTIONS: u16 = 1;
const PACKETS_IN: u16 = 2;
const PACKETS_OUT: u16 = 3;
const BYTES_IN: u16 = 4;
const BYTES_OUT: u16 = 5;
const CONNECTION_RATE: u16 = 6;
const PACKET_RATE_IN: u16 = 7;
const PACKET_RATE_OUT: u16 = 8;
const BYTE_RATE_IN: u16 = 9;
const BYTE_RATE_OUT: u16 = 10;

/// Collects the two forms an entry's counters come in; the wider one wins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Statistics {
    narrow: Option<Counters>,
    wide: Option<Counters>,
}

impl Statistics {
    pub(super) fn take_narrow(&mut self, value: &[u8]) -> Result<(), Malformed> {
        self.narrow = Some(counters(value)?);
        Ok(())
    }

    pub(super) fn take_wide(&mut self, value: &[u8]) -> Result<(), Malformed> {
        self.wide = Some(counters(value)?);
        Ok(())
    }

    pub(super) fn counters(self) -> Counters {
        self.wide.or(self.narrow).unwrap_or_default()
    }
}

/// Reads either form: every counter says its own width.
fn counters(value: &[u8]) -> Result<Counters, Malformed> {
    let mut counters = Counters::default();
    for attribute in Attributes::new(value) {
        let (kind, value) = attribute?;
        let field = match kind {
            CONNECTIONS => &mut counters.connections,
            PACKETS_IN => &mut counters.packets_in,
            PACKETS_OUT => &mut counters.packets_out,
            BYTES_IN => &mut counters.bytes_in,
            BYTES_OUT => &mut counters.bytes_out,
            CONNECTION_RATE => &mut counters.connections_per_second,
            PACKET_RATE_IN => &mut counters.packets_in_per_second,
            PACKET_RATE_OUT => &mut counters.packets_out_per_second,
            BYTE_RATE_IN => &mut counters.bytes_in_per_second,
            BYTE_RATE_OUT => &mut counters.bytes_out_per_second,
            _ => continue,
        };
        *field = match value.len() {
            4 => u32::from_ne_bytes(fixed(value, "a counter")?).into(),
            _ => u64::from_ne_bytes(fixed(value, "a counter")?),
        };
    }
    Ok(counters)
}
