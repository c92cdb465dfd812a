//! The kernel and the table in memory side by side, given the same random operations.

use merlin_ipvs::{Dataplane, Kernel, MemoryTable};
use merlin_model::Family;
use merlin_model::table::{
    Destination, DestinationKey, Encapsulation, ForwardMethod, Key, Operation, Service, flags,
};

use crate::checks;

checks![the_kernel_and_the_memory_table_agree_on_everything];

const ROUNDS: u64 = 150;
const OPERATIONS: usize = 60;

fn the_kernel_and_the_memory_table_agree_on_everything(kernel: &mut Kernel) {
    let mut memory = MemoryTable::new();
    for seed in 0..ROUNDS {
        let mut dice = Dice(seed);
        let operations: Vec<_> = (0..OPERATIONS).map(|_| dice.operation()).collect();
        let ours = numbers(&mut memory, &operations);
        let theirs = numbers(kernel, &operations);
        for ((operation, ours), theirs) in operations.iter().zip(ours).zip(theirs) {
            assert_eq!(theirs, ours, "seed {seed}: {operation:?}");
        }
        let theirs = kernel.dump().expect("the table can be read");
        assert_eq!(theirs, memory.table(), "seed {seed}");
    }
}

fn numbers(table: &mut impl Dataplane, operations: &[Operation]) -> Vec<i32> {
    let answers = table.apply(operations).expect("the table can be changed");
    let number = |answer: Result<_, merlin_ipvs::Refusal>| answer.err().map_or(0, |r| r.errno);
    answers.into_iter().map(number).collect()
}

/// SplitMix64: the same operations from the same seed, everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let length = u64::try_from(of.len()).expect("short");
        let index = usize::try_from(self.roll() % length).expect("short");
        of[index].clone()
    }

    fn address(&mut self, texts: &[&str]) -> std::net::IpAddr {
        self.pick(texts).parse().expect("a sample is an address")
    }

    fn key(&mut self) -> Key {
        match self.roll() % 4 {
            0 => Key::Fwmark {
                family: self.pick(&[Family::Ipv4, Family::Ipv6]),
                mark: self.pick(&[1, 2]),
            },
            _ => Key::Address {
                protocol: self.pick(&[6, 17]),
                address: self.address(&["10.0.0.1", "2001:db8::1"]),
                port: self.pick(&[80, 0]),
            },
        }
    }

    fn service(&mut self, key: &Key) -> Service {
        let scheduler = match self.roll() % 128 {
            // Rarely: the kernel looks for a module every time.
            0 => "twos",
            1 => "bogus",
            _ => self.pick(&["rr", "wrr", "wlc", "sh", "mh", "none"]),
        };
        Service {
            scheduler: scheduler.to_owned(),
            flags: self.pick(&[0, flags::PERSISTENT, flags::ONE_PACKET, 0x38, 0x18]),
            timeout: self.pick(&[0, 1, 300]),
            netmask: match key.family() {
                Family::Ipv4 => self.pick(&[32, 24, 0]),
                Family::Ipv6 => self.pick(&[128, 64, 0, 129]),
            },
            engine: match self.roll() % 128 {
                0 => Some("bogus".to_owned()),
                1..16 => Some("sip".to_owned()),
                _ => None,
            },
        }
    }

    fn server(&mut self) -> DestinationKey {
        let addresses = [
            "192.168.0.1",
            "192.168.0.2",
            "2001:db8::2",
            "2001:db8::3",
            "224.0.0.1",
            "ff02::1",
        ];
        DestinationKey::new(self.address(&addresses), self.pick(&[80, 0]))
    }

    fn destination(&mut self) -> Destination {
        use ForwardMethod::{Bypass, Local, Masq, Other, Route, Tunnel};
        Destination {
            forward: self.pick(&[Masq, Local, Tunnel, Tunnel, Tunnel, Route, Bypass, Other(6)]),
            weight: self.pick(&[0, 1, 65_535, 1 << 31]),
            upper_threshold: self.pick(&[0, 10]),
            lower_threshold: self.pick(&[0, 0, 5, 11]),
            encapsulation: Encapsulation {
                kind: self.pick(&[0, 1, 2, 77]),
                port: self.pick(&[0, 6080]),
                flags: self.pick(&[0, 1, 2]),
            },
        }
    }

    fn operation(&mut self) -> Operation {
        let key = self.key();
        match self.roll() % 16 {
            0..3 => Operation::AddService(key, self.service(&key)),
            3..5 => Operation::EditService(key, self.service(&key)),
            5 => Operation::DeleteService(key),
            6..11 => Operation::AddDestination(key, self.server(), self.destination()),
            11..14 => Operation::EditDestination(key, self.server(), self.destination()),
            _ => Operation::DeleteDestination(key, self.server()),
        }
    }
}
