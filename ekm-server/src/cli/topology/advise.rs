//! `ekm topology advise`: Google's reference topologies for Cloud EKM, as a table of facts and a few rules.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::error::{CliError, Exit};
use crate::cli::output::{Rows, print, print_json};
use crate::process::Output;

/// What Cloud KMS waits for an answer.
const DEADLINE_MS: u32 = 150;

/// What an EKM and its HSM may need of that: `limits.request_deadline_ms`.
const SERVER_MS: u32 = 100;

/// TCP, TLS 1.3, and the request itself.
const ROUND_TRIPS_OF_A_NEW_CONNECTION: u32 = 3;

/// From so many requests a second a hop less counts. A judgement.
const HIGH_THROUGHPUT_PER_S: u32 = 1000;

/// "At least three appliances, machines or VM hosts": one being updated, one failing.
const REPLICAS: u32 = 3;

#[derive(Args)]
pub(super) struct AdviseArgs {
    /// Sites with all that an EKM needs: frontends, HSMs, catalog
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    sites: u32,
    /// Frontends in each site
    #[arg(long, value_name = "N", default_value_t = REPLICAS, value_parser = clap::value_parser!(u32).range(1..=1000))]
    replicas: u32,
    /// The keys are in a multi-region location of Cloud KMS, such as eu
    #[arg(long)]
    multi_region: bool,
    /// Cloud KMS may call over the internet; without it, only over a VPC network
    #[arg(long)]
    internet: bool,
    /// The protection level that the keys must have [default: whichever fits]
    #[arg(long, value_enum, value_name = "LEVEL")]
    protection_level: Option<ProtectionLevel>,
    /// What connects the sites with Google Cloud
    #[arg(long, value_enum, value_name = "LINK", default_value = "vpn")]
    link: Link,
    /// From the keys' region to the farthest site and back, over that link
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..10_000))]
    rtt_ms: u32,
    /// Requests a second at the busiest time
    #[arg(long, value_name = "N", default_value_t = 100)]
    requests_per_s: u32,
    /// There can be no load balancer of your own in the sites
    #[arg(long)]
    no_load_balancer: bool,
    /// How to answer
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtectionLevel {
    /// Called over the internet
    External,
    /// Called over a VPC network
    ExternalVpc,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Link {
    /// Nothing: the internet
    None,
    /// HA VPN
    Vpn,
    /// Cloud Interconnect
    Interconnect,
}

/// A row of the comparison in Google's reference architectures.
#[derive(Serialize)]
struct Topology {
    name: &'static str,
    title: &'static str,
    network: &'static str,
    protection_level: &'static str,
    google_load_balancer: bool,
    own_load_balancer: bool,
    multi_region: bool,
    recommended_for: &'static str,
    #[serde(skip)]
    needs_link: bool,
    /// Where it ends, whatever is wanted of it.
    limits: &'static [&'static str],
    /// What is yours to do.
    duties: &'static [&'static str],
}

const DIRECT: Topology = Topology {
    name: "direct",
    title: "direct connection over VPN or Interconnect",
    network: "VPC",
    protection_level: "EXTERNAL_VPC",
    google_load_balancer: false,
    own_load_balancer: true,
    multi_region: false,
    recommended_for: "high throughput, one site",
    needs_link: true,
    limits: &[
        "nothing at Google looks at the EKM: with several sites behind one anycast address, failover is the withdrawal of a route and no more",
        "a site whose EKM is down and whose route is up gets its share of the requests: what announces the route has to look at /readyz",
    ],
    duties: &[
        "Google's side: deploy/terraform/topologies/direct",
        "a load balancer in each site: deploy/haproxy/tcp.cfg, or deploy/nginx/stream.conf.tftpl",
        "firewall: admit 35.199.192.0/19 to the load balancer's address; a route back to that range over the tunnels or attachments",
    ],
};

const VPC: Topology = Topology {
    name: "vpc",
    title: "load balanced in a VPC network",
    network: "VPC",
    protection_level: "EXTERNAL_VPC",
    google_load_balancer: true,
    own_load_balancer: false,
    multi_region: false,
    recommended_for: "most: failover between two sites by health checks",
    needs_link: true,
    limits: &[
        "the proxies in the VPC network are one more hop, and machines that you operate",
        "a connection that a failed replica had is lost; nginx sees who does not accept connections, and not who accepts and is silent",
    ],
    duties: &[
        "Google's side, with a group of nginx proxies for each site: deploy/terraform/topologies/vpc-lb",
        "the health check that decides on failover asks the proxies for /readyz on port 8080, the one that restarts them for /livez",
        "firewall: admit 35.199.192.0/19 to the proxies' port, 35.191.0.0/16 and 130.211.0.0/22 to 8080 only",
    ],
};

const INTERNET: Topology = Topology {
    name: "internet",
    title: "load balanced from the internet",
    network: "internet",
    protection_level: "EXTERNAL",
    google_load_balancer: true,
    own_load_balancer: false,
    multi_region: true,
    recommended_for: "keys in multi-region locations",
    needs_link: true,
    limits: &[
        "no primary and no backup: requests are spread evenly, so every site is active and has all the keys",
        "no pinned certificate: a public authority's, for a public name",
        "not in the locations global and nam-eur-asia1",
    ],
    duties: &[
        "Google's side: deploy/terraform/topologies/internet-lb",
        "premium network tier; hybrid endpoint groups with each replica's address, so that no load balancer of your own is needed",
        "firewall: admit 35.191.0.0/16 and 130.211.0.0/22 to the replicas, and a route back to both",
        "near every member region of the location: Cloud KMS calls from the region that got the request",
    ],
};

const OWN_EDGE: Topology = Topology {
    name: "own-edge",
    title: "a public address of your own, as partners have it",
    network: "internet",
    protection_level: "EXTERNAL",
    google_load_balancer: false,
    own_load_balancer: true,
    multi_region: true,
    recommended_for: "an EKM that is operated for others",
    needs_link: false,
    limits: &[
        "Google's part ends at your address: DNS, load balancing and failover are all yours",
        "no pinned certificate: a public authority's, for a public name",
        "not in the locations global and nam-eur-asia1",
    ],
    duties: &["load balancers at the public addresses, and a way to take a site's address out of DNS, or its route"],
};

const TOPOLOGIES: [&Topology; 4] = [&VPC, &DIRECT, &INTERNET, &OWN_EDGE];

#[derive(Serialize)]
struct Advice {
    /// `None` if nothing fits.
    topology: Option<&'static Topology>,
    reasons: Vec<String>,
    warnings: Vec<String>,
    others: Vec<Other>,
}

#[derive(Serialize)]
struct Other {
    name: &'static str,
    verdict: &'static str,
    why: String,
}

pub(super) fn run(args: &AdviseArgs) -> Result<Exit, CliError> {
    let advice = advise(args);
    match args.output {
        Output::Json => print_json(&advice),
        Output::Text => print(&render(&advice, std::io::stdout().is_terminal())),
    }
    if advice.topology.is_some() {
        return Ok(Exit::Done);
    }
    let refused: Vec<_> = advice.others.iter().map(|other| format!("{}: {}", other.name, other.why)).collect();
    Err(CliError::NoTopology(format!("no topology fits; {}", refused.join("; "))))
}

fn advise(args: &AdviseArgs) -> Advice {
    let refused = TOPOLOGIES.map(|topology| (topology, refusals(topology, args)));
    let fits = |wanted: &Topology| refused.iter().any(|(one, why)| one.name == wanted.name && why.is_empty());
    let single_site = args.sites == 1 || args.requests_per_s >= HIGH_THROUGHPUT_PER_S;
    let preference: [&'static Topology; 4] = match (args.multi_region, single_site) {
        (true, _) => [&INTERNET, &OWN_EDGE, &VPC, &DIRECT],
        (false, true) => [&DIRECT, &VPC, &INTERNET, &OWN_EDGE],
        (false, false) => [&VPC, &DIRECT, &INTERNET, &OWN_EDGE],
    };
    let topology = preference.into_iter().find(|topology| fits(topology));
    let others = refused.iter().filter(|(one, _)| topology.is_none_or(|chosen| chosen.name != one.name));
    let others = others.map(|(one, why)| {
        let (verdict, why) = match why.is_empty() {
            false => ("refused", why.join(", and ")),
            true => ("possible", format!("recommended for: {}", one.recommended_for)),
        };
        Other { name: one.name, verdict, why }
    });
    let others = others.collect();
    let reasons = topology.map(|topology| reasons(topology, args)).unwrap_or_default();
    Advice { topology, reasons, warnings: warnings(args), others }
}

/// Why it cannot be.
fn refusals(topology: &Topology, args: &AdviseArgs) -> Vec<String> {
    let mut why = Vec::new();
    let mut unless = |fits: bool, text: &str| {
        if !fits {
            why.push(text.to_owned());
        }
    };
    unless(topology.multi_region || !args.multi_region, "keys of protection level EXTERNAL_VPC are regional only");
    unless(topology.network == "VPC" || args.internet, "Cloud KMS would call over the internet (--internet)");
    unless(!topology.needs_link || args.link != Link::None, "it needs Cloud VPN or Cloud Interconnect (--link)");
    unless(!topology.own_load_balancer || !args.no_load_balancer, "it needs a load balancer of your own in each site");
    let level = match args.protection_level {
        None => topology.protection_level,
        Some(ProtectionLevel::External) => "EXTERNAL",
        Some(ProtectionLevel::ExternalVpc) => "EXTERNAL_VPC",
    };
    unless(level == topology.protection_level, &format!("its protection level is {}", topology.protection_level));
    why
}

fn reasons(topology: &Topology, args: &AdviseArgs) -> Vec<String> {
    let mut why = vec![format!("recommended for: {}", topology.recommended_for)];
    if args.multi_region {
        why.push("keys in a multi-region location are called over the internet only".into());
    }
    if !args.multi_region && topology.name == DIRECT.name {
        why.push("no hop between Cloud KMS and your network, so the lowest latency".into());
        if args.requests_per_s >= HIGH_THROUGHPUT_PER_S {
            let per_s = args.requests_per_s;
            why.push(format!(
                "{per_s} requests/s pass no proxy; that {HIGH_THROUGHPUT_PER_S} are many is a judgement of this tool"
            ));
        }
    }
    if topology.name == VPC.name && args.sites > 1 {
        why.push("the backup site takes over when the health check of the first one's proxies fails".into());
    }
    if topology.name == VPC.name && args.no_load_balancer {
        why.push("needs no load balancer of your own".into());
    }
    why
}

fn warnings(args: &AdviseArgs) -> Vec<String> {
    let mut found = Vec::new();
    let mut warn = |wrong: bool, text: String| {
        if wrong {
            found.push(text);
        }
    };
    let new_connection = ROUND_TRIPS_OF_A_NEW_CONNECTION * args.rtt_ms;
    let left = DEADLINE_MS.saturating_sub(new_connection);
    warn(
        left < SERVER_MS,
        format!(
            "a request on a new connection is {new_connection} ms of round trips, which leaves {left} of {DEADLINE_MS} ms for EKM and HSM: \
             keep limits.request_deadline_ms below that, or come nearer"
        ),
    );
    let sites = args.sites;
    warn(sites < 2, "one site is a single point of failure: Google asks for two replicas in independent zones".into());
    warn(
        args.multi_region && sites < 2,
        "multi-region keys: Google asks for two sites with two replicas each, whole stacks both".into(),
    );
    let replicas = args.replicas;
    warn(
        replicas < REPLICAS,
        format!("{replicas} frontends in a site: Google asks for {REPLICAS}, one being updated and one failing"),
    );
    warn(
        args.link == Link::Vpn,
        "HA VPN goes over the internet: two tunnels, one on each interface, and BGP with BFD, else a dead one is noticed after 60 s".into(),
    );
    found
}

fn render(advice: &Advice, terminal: bool) -> String {
    let mut text = String::new();
    if let Some(topology) = advice.topology {
        text += &format!("{}: {}\nprotection level {}\n", topology.name, topology.title, topology.protection_level);
        let owned = |list: &[&str]| list.iter().map(|&line| line.to_owned()).collect();
        for (heading, lines) in [
            ("Why", advice.reasons.clone()),
            ("Limits", owned(topology.limits)),
            ("Yours to do", owned(topology.duties)),
            ("Watch out", advice.warnings.clone()),
        ] {
            if !lines.is_empty() {
                text += &format!("\n{heading}\n  {}\n", lines.join("\n  "));
            }
        }
    }
    let mut rows =
        Rows::new(["TOPOLOGY", "VERDICT", "NETWORK", "GOOGLE'S BALANCER", "YOUR BALANCER", "MULTI-REGION", "WHY"]);
    let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    for topology in TOPOLOGIES {
        let other = advice.others.iter().find(|other| other.name == topology.name);
        let (verdict, why) = match other {
            Some(other) => (other.verdict, other.why.clone()),
            None => ("chosen", advice.reasons.join("; ")),
        };
        rows.push([
            topology.name.into(),
            verdict.into(),
            topology.network.into(),
            word(topology.google_load_balancer),
            word(topology.own_load_balancer),
            word(topology.multi_region),
            why,
        ]);
    }
    format!("{text}\n{}", rows.render(terminal)).trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: AdviseArgs,
    }

    fn advised(line: &str) -> Advice {
        let words = std::iter::once("advise").chain(line.split_whitespace());
        advise(&Line::try_parse_from(words).unwrap().args)
    }

    fn chosen(line: &str) -> Option<&'static str> {
        advised(line).topology.map(|topology| topology.name)
    }

    #[test]
    fn two_sites_are_balanced_in_the_vpc_and_one_is_connected_directly() {
        assert_eq!(chosen(""), Some("vpc"));
        assert_eq!(chosen("--sites 1"), Some("direct"));
        assert_eq!(chosen("--sites 1 --no-load-balancer"), Some("vpc"));
        assert_eq!(chosen("--requests-per-s 5000"), Some("direct"));
    }

    #[test]
    fn multi_region_keys_are_called_over_the_internet_or_not_at_all() {
        assert_eq!(chosen("--multi-region --internet"), Some("internet"));
        assert_eq!(chosen("--multi-region --internet --link none"), Some("own-edge"));
        let none = advised("--multi-region");
        assert!(none.topology.is_none());
        assert!(none.others.iter().all(|other| other.verdict == "refused"));
        let vpc = none.others.iter().find(|other| other.name == "vpc").unwrap();
        assert!(vpc.why.contains("regional only"), "{}", vpc.why);
    }

    #[test]
    fn a_protection_level_decides_about_the_network() {
        assert_eq!(chosen("--internet --protection-level external"), Some("internet"));
        assert_eq!(chosen("--protection-level external"), None);
        assert_eq!(chosen("--multi-region --internet --protection-level external-vpc"), None);
    }

    #[test]
    fn without_a_link_only_a_public_address_is_left() {
        assert_eq!(chosen("--link none"), None);
        assert_eq!(chosen("--link none --internet"), Some("own-edge"));
    }

    #[test]
    fn distance_and_numbers_are_warned_of() {
        let all = advised("--sites 1 --replicas 2 --rtt-ms 20").warnings.join("\n");
        assert!(all.contains("60 ms of round trips, which leaves 90 of 150 ms"), "{all}");
        assert!(all.contains("single point of failure") && all.contains("2 frontends in a site"), "{all}");
        assert_eq!(advised("--link interconnect --rtt-ms 16").warnings, Vec::<String>::new());
    }

    #[test]
    fn the_table_has_every_topology_and_the_comparison_of_the_reference_architectures() {
        let text = render(&advised(""), false);
        for row in ["direct    possible  VPC       no   yes  no", "internet  refused   internet  yes  no   yes"] {
            assert!(text.contains(row), "{text}");
        }
        assert!(
            text.starts_with("vpc: load balanced in a VPC network\nprotection level EXTERNAL_VPC\n\nWhy\n"),
            "{text}"
        );
        assert!(text.contains("own-edge  refused   internet  no   yes  yes"), "{text}");
    }
}
