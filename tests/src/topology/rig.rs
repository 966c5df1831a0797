//! The sites, and the ways to them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::balancer::{Balancer, Place};
use super::network::{Node, network, route_packets};
use super::replica::Replica;
use super::router::{Policy, Router};
use crate::guardian::Guardian;
use crate::process::{Directory, set_up};

/// A way from Cloud KMS to the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// No balancer: to one replica; what the others are compared with
    None,
    /// Direct connection: one anycast address by routes to both sites, HAProxy in each
    Direct,
    /// The same with nginx in each
    DirectNginx,
    /// The same with nginx that ends TLS, and repeats requests
    DirectHttps,
    /// The same with HAProxy that ends TLS, and repeats requests
    DirectHaproxyHttps,
    /// From the internet: one TCP proxy before the replicas of both sites; HAProxy stands for Google's front end
    Internet,
    /// In a VPC network: nginx for each site there, and an address that goes to the second site when the first is not ready
    Vpc,
    /// One HAProxy before the three replicas of the first site
    OneHaproxy,
    /// One nginx before them
    OneNginx,
    /// One HAProxy that ends TLS, and repeats requests
    OneHaproxyHttps,
    /// One nginx that does so
    OneNginxHttps,
}

impl Way {
    /// As in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no balancer",
            Self::Direct => "direct, HAProxy",
            Self::DirectNginx => "direct, nginx",
            Self::DirectHttps => "direct, nginx HTTPS",
            Self::DirectHaproxyHttps => "direct, HAProxy HTTPS",
            Self::Internet => "internet",
            Self::Vpc => "VPC, nginx",
            Self::OneHaproxy => "one HAProxy",
            Self::OneNginx => "one nginx",
            Self::OneHaproxyHttps => "one HAProxy HTTPS",
            Self::OneNginxHttps => "one nginx HTTPS",
        }
    }

    /// Whether one balancer is before three replicas, and nothing else there.
    pub fn is_one(self) -> bool {
        matches!(self, Self::OneHaproxy | Self::OneNginx | Self::OneHaproxyHttps | Self::OneNginxHttps)
    }

    /// Whether the balancer sees requests, and can repeat them.
    pub fn repeats(self) -> bool {
        matches!(self, Self::DirectHttps | Self::DirectHaproxyHttps | Self::OneHaproxyHttps | Self::OneNginxHttps)
    }
}

/// Three replicas in site a and two in site b, all with the same keys.
pub struct Sites {
    /// Of the first site.
    pub a: Vec<Replica>,
    /// Of the second.
    pub b: Vec<Replica>,
    /// What `ekm dev` has set up: certificate and issuer.
    pub origin: Directory,
    balancers: [Node; 2],
    proxies: [Node; 2],
    front_end: Node,
    directory: PathBuf,
    _guardian: Guardian,
}

/// The way to the sites that was built.
pub struct Rig {
    /// Where Cloud KMS calls.
    pub address: SocketAddr,
    _router: Option<Router>,
    _balancers: Vec<Balancer>,
}

impl Sites {
    /// Starts the replicas with these lines for `[limits]`, and waits until they are ready.
    pub fn start(limits: &str) -> Self {
        let guardian = Guardian::new("topology");
        let origin = set_up(&[]);
        route_packets();
        for (name, third) in [("site-a", 1), ("site-b", 2), ("vpc", 3)] {
            network(name, third);
        }
        let directory = guardian.directory().to_owned();
        let start = |site: char, third, numbers: std::ops::RangeInclusive<u8>| {
            let replicas = numbers.map(|number| {
                let node = Node::new(&format!("{site}{number}"), &format!("site-{site}"), third, 10 + number);
                Replica::start(node, &origin, &directory, limits)
            });
            replicas.collect::<Vec<_>>()
        };
        let (a, b) = (start('a', 1, 1..=3), start('b', 2, 1..=2));
        a.iter().chain(&b).for_each(Replica::wait_until_ready);
        let balancers = [Node::new("lb-a", "site-a", 1, 2), Node::new("lb-b", "site-b", 2, 2)];
        let proxies = [Node::new("proxy-a", "vpc", 3, 2), Node::new("proxy-b", "vpc", 3, 3)];
        let front_end = Node::new("front-end", "vpc", 3, 9);
        balancers.iter().for_each(|node| node.add_address(ANYCAST));
        proxies.iter().for_each(|node| node.add_address(INTERNAL));
        Self { a, b, origin, balancers, proxies, front_end, directory, _guardian: guardian }
    }

    /// Builds a way to them, for callers who wait so many times as long as Cloud KMS.
    pub fn build(&self, way: Way, stretch: u64) -> Rig {
        let hops = |nodes: &[Node; 2]| nodes.iter().map(|node| node.address.clone()).collect::<Vec<_>>();
        let place = |node| Place { node, within: &self.directory, stretch };
        let sites = [&self.a, &self.b];
        let (address, router, balancers): (SocketAddr, _, Vec<_>) = match way {
            Way::None => (self.a[0].address(), None, Vec::new()),
            Way::Direct | Way::DirectNginx | Way::DirectHttps | Way::DirectHaproxyHttps => {
                let each = self.balancers.iter().zip(sites);
                let each = each.map(|(node, replicas)| self.before(place(node), replicas, way)).collect();
                let router = Router::start(ANYCAST, hops(&self.balancers), Policy::Spread, ANNOUNCER);
                (format!("{ANYCAST}:8443").parse().expect("an address"), Some(router), each)
            }
            Way::Internet => {
                let balancer = Balancer::haproxy(place(&self.front_end), |sample| front_end(&sample, &self.a, &self.b));
                (format!("{}:8443", self.front_end.address).parse().expect("an address"), None, vec![balancer])
            }
            Way::Vpc => {
                let each = self.proxies.iter().zip(sites);
                let each = each.map(|(node, replicas)| Balancer::nginx(place(node), 443, &addresses(replicas), &[]));
                let each = each.collect();
                let router = Router::start(INTERNAL, hops(&self.proxies), Policy::Prefer, INTERNAL_CHECKS);
                (format!("{INTERNAL}:443").parse().expect("an address"), Some(router), each)
            }
            Way::OneHaproxy | Way::OneNginx | Way::OneHaproxyHttps | Way::OneNginxHttps => {
                let balancer = self.before(place(&self.balancers[0]), &self.a, way);
                (format!("{}:8443", self.balancers[0].address).parse().expect("an address"), None, vec![balancer])
            }
        };
        Rig { address, _router: router, _balancers: balancers }
    }

    /// The balancer of this way before the replicas of one site.
    fn before(&self, place: Place<'_>, replicas: &[Replica], way: Way) -> Balancer {
        let origin = self.origin.path();
        match way {
            Way::DirectHttps | Way::OneNginxHttps => Balancer::nginx_https(place, origin, &hosts(replicas)),
            Way::DirectNginx | Way::OneNginx => Balancer::nginx(place, 8443, &addresses(replicas), &[]),
            Way::DirectHaproxyHttps | Way::OneHaproxyHttps => {
                Balancer::haproxy_https(place, origin, |sample| one_site(&sample, replicas))
            }
            _ => Balancer::haproxy(place, |sample| one_site(&sample, replicas)),
        }
    }

    /// The first site is gone, with all that is in it.
    pub fn lose_site_a(&self) {
        self.a.iter().for_each(Replica::silence);
        self.balancers[0].silence();
    }

    /// It is back.
    pub fn restore_site_a(&self) {
        self.a.iter().for_each(Replica::heal);
        self.balancers[0].heal();
    }
}

/// The address that both sites announce.
const ANYCAST: &str = "10.20.0.10";

/// The internal load balancer's address.
const INTERNAL: &str = "10.20.0.20";

/// What announces a site's address looks at it so often.
const ANNOUNCER: Duration = Duration::from_millis(500);

/// The least that Google's health checks allow.
const INTERNAL_CHECKS: Duration = Duration::from_secs(1);

fn hosts(replicas: &[Replica]) -> Vec<String> {
    replicas.iter().map(|replica| replica.address().ip().to_string()).collect()
}

fn addresses(replicas: &[Replica]) -> Vec<String> {
    replicas.iter().map(|replica| replica.address().to_string()).collect()
}

/// The sample without the second backend, and with these servers in the others.
fn one_site(sample: &str, replicas: &[Replica]) -> String {
    let mut text = String::new();
    for section in sections(sample) {
        match section.lines().next().unwrap_or_default() {
            "backend site-b" => {}
            "backend site-a" | "backend replicas" | "backend unchecked" => {
                text += &with_servers(section, replicas.iter())
            }
            _ => text += &section.replace("    use_backend site-b if { nbsrv(site-b) gt 0 }\n", ""),
        }
    }
    text
}

/// The sample as a balancer that knows no sites: all servers in one backend, looked at as often as Google does it at most.
fn front_end(sample: &str, a: &[Replica], b: &[Replica]) -> String {
    let one_site = one_site(sample, a);
    let all = sections(&one_site).map(|section| match section.lines().next().unwrap_or_default() {
        "backend site-a" | "backend unchecked" => with_servers(section, a.iter().chain(b)),
        _ => section.to_owned(),
    });
    let text = all.collect::<String>();
    text.replace("inter 500ms fastinter 200ms", "inter 1s")
        .replace(" observe layer4 error-limit 3 on-error fastinter", "")
}

fn sections(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive("\n\n")
}

fn with_servers<'a>(section: &str, replicas: impl Iterator<Item = &'a Replica>) -> String {
    let kept: String =
        section.lines().filter(|line| !line.starts_with("    server ")).map(|line| format!("{line}\n")).collect();
    let servers = replicas.map(|replica| format!("    server {} {}\n", replica.name(), replica.address()));
    format!("{}\n{}\n", kept.trim_end(), servers.collect::<String>())
}
