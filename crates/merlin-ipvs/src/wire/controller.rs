//! Generic netlink's controller, which numbers the families.

use super::netlink::{Attributes, Header, Malformed, Writer, fixed, flags};

/// Name under which the kernel registers IPVS.
const FAMILY: &str = "IPVS";

/// `GENL_ID_CTRL`, the controller's own number.
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const VERSION: u8 = 1;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// Appends a request for the number of the IPVS family. It makes the kernel load the module, if
/// there is one and the caller may.
pub fn family_request(sequence: u32, buffer: &mut Vec<u8>) {
    let header = Header {
        family: CONTROLLER,
        flags: flags::REQUEST,
        sequence,
    };
    Writer::message(buffer, header, GET_FAMILY, VERSION, |writer| {
        writer.put_name(FAMILY_NAME, FAMILY);
    });
}

/// Reads the answer to a [`family_request`].
pub fn family_id(payload: &[u8]) -> Result<u16, Malformed> {
    let attributes = payload.get(4..).ok_or(Malformed::Message)?;
    let id = Attributes::new(attributes).find(FAMILY_ID)?;
    let id = id.ok_or(Malformed::Missing("family id"))?;
    fixed(id, "a family id").map(u16::from_ne_bytes)
}
