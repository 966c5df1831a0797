//! Machines: network namespaces on bridges, which the program's own namespace routes between.

use std::fs;
use std::process::Command;

use crate::namespaces;

/// A network of the program's own namespace, which is .254 in it.
pub(super) fn network(name: &str, third: u8) {
    ip(&format!("link add {name} type bridge"));
    ip(&format!("address add 10.20.{third}.254/24 dev {name}"));
    ip(&format!("link set {name} up"));
}

/// Lets this namespace route, and spread connections (not whole clients) over several ways to an address.
pub(super) fn route_packets() {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("its own network");
    fs::write("/proc/sys/net/ipv4/fib_multipath_hash_policy", "1").expect("its own network");
}

/// A machine.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    third: u8,
    /// Its address.
    pub(super) address: String,
}

impl Node {
    /// On this network.
    pub(super) fn new(name: &str, network: &str, third: u8, fourth: u8) -> Self {
        let address = format!("10.20.{third}.{fourth}");
        ip(&format!("netns add {name}"));
        ip(&format!("link add v-{name} type veth peer name eth0 netns {name}"));
        ip(&format!("link set v-{name} master {network} up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} address add {address}/24 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} route add default via 10.20.{third}.254"));
        Self { name: name.into(), third, address }
    }

    /// One more address, which others reach by a route only.
    pub(super) fn add_address(&self, address: &str) {
        ip(&format!("-n {} address add {address}/32 dev lo", self.name));
    }

    /// Nothing that it sends arrives any more: it neither answers nor refuses.
    pub(super) fn silence(&self) {
        self.halves("add");
    }

    /// Takes that back.
    pub(super) fn heal(&self) {
        self.halves("del");
    }

    /// Routes that are narrower than the one to its own network.
    fn halves(&self, verb: &str) {
        for fourth in [0, 128] {
            ip(&format!("-n {} route {verb} blackhole 10.20.{}.{fourth}/25", self.name, self.third));
        }
        let (verb, way) = match verb {
            "add" => ("replace", "blackhole default".to_owned()),
            _ => ("replace", format!("default via 10.20.{}.254", self.third)),
        };
        ip(&format!("-n {} route {verb} {way}", self.name));
    }

    /// A program on it.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }
}

pub(super) fn ip(arguments: &str) {
    namespaces::run(Command::new("ip").args(arguments.split(' ')))
        .unwrap_or_else(|error| panic!("ip {arguments}: {error}"));
}
