//! The table as `/proc/net/ip_vs` prints it: one read of what takes two system calls per service
//! by netlink, without thresholds, tunnels and persistence engines.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};

use crate::Fingerprint;

/// `/proc/net` is that of the process, which other threads may have moved to another namespace.
const PATH: &str = "/proc/thread-self/net/ip_vs";

/// Reads and hashes the table. `buffer` is scratch space, kept to be used again.
pub(super) fn fingerprint(buffer: &mut Vec<u8>) -> io::Result<Fingerprint> {
    buffer.clear();
    File::open(PATH)?.read_to_end(buffer)?;
    Ok(hash(buffer))
}

/// Hashes all but the connection counts, which end the line of every destination.
fn hash(table: &[u8]) -> Fingerprint {
    let mut hasher = DefaultHasher::new();
    for line in table.split(|&byte| byte == b'\n') {
        let line = if line.starts_with(b"  -> ") {
            without_last_word(without_last_word(line))
        } else {
            line
        };
        hasher.write(line);
        hasher.write_u8(b'\n');
    }
    Fingerprint(hasher.finish())
}

fn without_last_word(line: &[u8]) -> &[u8] {
    let line = line.trim_ascii_end();
    let word = line
        .iter()
        .rev()
        .take_while(|byte| !byte.is_ascii_whitespace());
    line[..line.len() - word.count()].trim_ascii_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A000001:0050 mh persistent 30000 FFFFFFFF
  -> C0A80002:1F90      Masq    1      0          0         
  -> C0A80001:1F90      Tunnel  7      12         3         
TCP  [20010db8000000000000000000000001]:0050 rr 
  -> [20010db8000000000000000000000002]:0050      Route   1      0          0         
";

    fn changed(from: &str, to: &str) -> bool {
        assert!(TABLE.contains(from));
        hash(TABLE.as_bytes()) != hash(TABLE.replacen(from, to, 1).as_bytes())
    }

    #[test]
    fn connection_counts_do_not_matter() {
        assert!(!changed(
            "7      12         3         ",
            "7      123456     0         "
        ));
        assert!(!changed(
            "Route   1      0          0         ",
            "Route   1      0          9         "
        ));
        // Wider than their columns.
        assert!(!changed("12         3         ", "12345678901 12345678901"));
    }

    #[test]
    fn everything_else_does() {
        for (from, to) in [
            ("0A000001:0050", "0A000001:0051"),
            ("mh persistent", "sh persistent"),
            ("30000", "36000"),
            ("C0A80002:1F90", "C0A80003:1F90"),
            ("Tunnel", "Route "),
            ("Masq    1 ", "Masq    0 "),
            (
                "  -> C0A80002:1F90      Masq    1      0          0         \n",
                "",
            ),
        ] {
            assert!(changed(from, to), "{from} to {to}");
        }
    }
}
