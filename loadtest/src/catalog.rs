//! `ekm-bench-catalog`: what a catalog of a million keys costs, beside one of a hundred.
//!
//! Fills real catalogs, in SQLite and custody `software`, with the product's own code, and starts `ekm serve` on them. Figures that
//! are compared are measured in turns, in the same run.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use ekm_core::blob::VersionId;
use ekm_core::catalog::{CatalogKey, Custody, KeyRecord, Kind, Mirror, PolicyRecord, SpaceRecord, SpaceState};
use ekm_core::custody::Custodian;
use ekm_core::software::KeyFile;
use ekm_core::{Algorithm, KeyPath, ShardName, Snapshot};
use ekm_loadtest::{cpu_seconds, measure, request, rss_mib, until_idle};
use ekm_server::catalog::{Draft, Entry, initialise, load, open_store};
use ekm_server::config::Config;
use ekm_tests::{Directory, Ekm, base64, set_up};
use time::OffsetDateTime;
use uuid::Uuid;

/// Measures a large catalog beside a small one: look-ups, whole requests, and how long a start takes.
#[derive(Parser)]
struct Args {
    /// Keys in the large catalog
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    keys: usize,
    /// Keys in the small catalog
    #[arg(long, default_value_t = 100, value_name = "N")]
    small: usize,
    /// Time per measurement of requests
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    seconds: f64,
    /// Measurements of each kind; the median counts
    #[arg(long, default_value_t = 5)]
    repeat: usize,
}

/// How many different keys the requests use, where the catalog has as many. What the catalog's size costs shows the first; the second
/// adds what it costs to use many keys.
const WORKING_SETS: [usize; 2] = [100, 10_000];
/// Keys in one change while the catalog is filled.
const BATCH: usize = 1000;

struct Subject {
    keys: usize,
    directory: Directory,
    snapshot: Snapshot,
    paths: Vec<KeyPath>,
    load: Duration,
}

#[expect(clippy::print_stdout, reason = "the report")]
fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let subjects = [runtime.block_on(Subject::fill(args.small))?, runtime.block_on(Subject::fill(args.keys))?];

    println!("{:<44} {:>14} {:>14} {:>8}", "", format!("{} keys", args.small), format!("{} keys", args.keys), "ratio");
    let row = |what: &str, [small, large]: [f64; 2]| {
        println!("{what:<44} {small:>14.2} {large:>14.2} {:>8.3}", large / small)
    };
    row(
        "look-up, a hundred hot keys, ns",
        in_turns(&subjects, args.repeat, |it| Ok(look_up_ns(it, &sample(&it.paths, 100))))?,
    );
    row(
        "look-up, uniformly over all keys, ns",
        in_turns(&subjects, args.repeat, |it| Ok(look_up_ns(it, &sample(&it.paths, 1_000_000))))?,
    );

    let began = subjects.each_ref().map(start);
    let starts = began.each_ref().map(|(_, took)| took.as_secs_f64());
    let servers = began.map(|(ekm, _)| ekm);
    let start_cpu = servers.each_ref().map(|ekm| cpu_seconds(ekm.pid()).unwrap_or(f64::NAN));
    for server in &servers {
        runtime.block_on(until_idle(server))?; // every key is proven
    }
    let mut errors = 0;
    for working_set in WORKING_SETS {
        let requests = subjects.each_ref().map(|subject| spread(&subject.paths, working_set));
        let different = requests.each_ref().map(Vec::len);
        let requests = [0, 1].map(|index| {
            let token = &servers[index].ready.token;
            let paths = requests[index].iter();
            let wraps = paths.map(|path| request(path.as_str(), "wrap", token, "plaintext", &base64([7; 32])));
            Arc::new(wraps.collect::<Vec<_>>())
        });
        let measured = in_turns(&[0, 1], args.repeat, |&index| {
            let measured = runtime.block_on(measure(&servers[index], &requests[index], 16, args.seconds))?;
            errors += measured.errors;
            Ok(measured.cpu_us)
        })?;
        row(&format!("a wrap request, {} / {} keys in use, CPU us", different[0], different[1]), measured);
    }
    row("reading and verifying the catalog, s", subjects.each_ref().map(|subject| subject.load.as_secs_f64()));
    row("start of ekm serve until ready, s", starts);
    row("CPU time until then, s", start_cpu);
    let memory = servers.each_ref().map(|ekm| rss_mib(ekm.pid()).unwrap_or(f64::NAN));
    row("resident memory, MiB", memory);
    println!(
        "resident memory per key, bytes: {:.0}",
        (memory[1] - memory[0]) * 1048576.0 / (args.keys - args.small) as f64
    );
    println!(
        "requests that failed: {errors}; medians of {}, measured in turns; a key that was not in use for long is not in the processor's \
         caches, in a catalog of any size",
        args.repeat
    );
    Ok(())
}

/// The median for each, one after the other again and again, so that both see the same machine.
fn in_turns<T>(subjects: &[T; 2], repeat: usize, mut measure: impl FnMut(&T) -> Result<f64>) -> Result<[f64; 2]> {
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..repeat {
        for (subject, figures) in subjects.iter().zip(&mut figures) {
            figures.push(measure(subject)?);
        }
    }
    Ok(figures.map(|mut figures| {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    }))
}

/// Different paths from all over the catalog.
fn spread(paths: &[KeyPath], count: usize) -> Vec<KeyPath> {
    paths.iter().step_by(paths.len().div_ceil(count)).cloned().collect()
}

/// Paths in a fixed order that visits no neighbours.
fn sample(paths: &[KeyPath], count: usize) -> Vec<KeyPath> {
    let mut state = 1u64;
    (0..count)
        .map(|_| {
            // Knuth's MMIX generator.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            paths[(state >> 33) as usize % paths.len()].clone()
        })
        .collect()
}

fn look_up_ns(subject: &Subject, paths: &[KeyPath]) -> f64 {
    let rounds = 2_000_000usize.div_ceil(paths.len());
    let began = Instant::now();
    for _ in 0..rounds {
        for path in paths {
            let key = subject.snapshot.key(black_box(path)).expect("it is there");
            black_box((subject.snapshot.policy(key), subject.snapshot.space(key)));
        }
    }
    began.elapsed().as_secs_f64() * 1e9 / (rounds * paths.len()) as f64
}

fn start(subject: &Subject) -> (Ekm, Duration) {
    let began = Instant::now();
    let ekm =
        Ekm::serve(&subject.directory, |text| text.replace("request_deadline_ms = 20000", "request_deadline_ms = 100"));
    (ekm, began.elapsed())
}

impl Subject {
    #[expect(clippy::print_stderr, reason = "progress")]
    async fn fill(keys: usize) -> Result<Self> {
        let directory = set_up(&[]);
        let config = Config::read(&directory.path().join("ekm.toml")).map_err(|error| anyhow::anyhow!("{error}"))?;
        let store = open_store(&config.catalog, false).await?;
        let key_file = read_key_file(directory.path())?;
        let custodian = Custodian::new(Some(read_key_file(directory.path())?), Vec::new());
        let key = initialise(&store, &custodian, Some(&key_file)).await?;
        let (space, policy) = add_space_and_policy(&store, &key).await?;
        let mut paths = Vec::with_capacity(keys);
        let began = Instant::now();
        while paths.len() < keys {
            let mut draft = Draft::begin(store.write().await?, &key, None, OffsetDateTime::now_utc())?;
            for _ in 0..BATCH.min(keys - paths.len()) {
                let path = KeyPath::parse(&format!("v0/keys/bench-{:07}", paths.len())).context("a path")?;
                let id = VersionId { key: Uuid::now_v7(), number: 1 };
                let made =
                    custodian.generate(Algorithm::Symmetric, Custody::Software, &ShardName::default(), id).await?;
                let mut record = KeyRecord::new(made, space, policy, Algorithm::Symmetric, draft.now())?;
                record.paths.push(path.clone());
                record.labels = [("team".to_owned(), "payments".to_owned())].into();
                draft.name(Kind::Key, path.as_str(), id.key);
                draft.put_key(&record)?;
                paths.push(path);
            }
            draft.commit(Entry::by_ekm("key-create", "bench"), None).await?;
            if paths.len() % 100_000 == 0 {
                eprintln!("{} of {keys} keys after {:.0} s", paths.len(), began.elapsed().as_secs_f64());
            }
        }
        let began = Instant::now();
        let (_, mirror) = load(&store, &Mirror::new(Arc::clone(&key))).await?;
        let load = began.elapsed();
        Ok(Self { keys, directory, snapshot: mirror.snapshot().clone(), paths, load }).inspect(|it| {
            assert!(it.snapshot.path_count() > it.keys, "every key is there");
        })
    }
}

fn read_key_file(directory: &Path) -> Result<KeyFile> {
    Ok(KeyFile::parse(std::fs::read_to_string(directory.join("software.key"))?.trim())?)
}

async fn add_space_and_policy(store: &ekm_storage::CatalogStore, key: &CatalogKey) -> Result<(Uuid, Uuid)> {
    let mut draft = Draft::begin(store.write().await?, key, None, OffsetDateTime::now_utc())?;
    let (space, policy) = (Uuid::now_v7(), Uuid::now_v7());
    let document =
        r#"{"rules":[{"callers":["service-*@gcp-sa-ekms.iam.gserviceaccount.com"],"verbs":["wrap","unwrap"]}]}"#;
    let record = SpaceRecord {
        id: space,
        path: KeyPath::parse("v0/cryptospaces/bench").context("a path")?,
        state: SpaceState::Enabled,
        shard: ShardName::default(),
        creation: None,
        labels: Default::default(),
        description: String::new(),
        created_at: draft.now(),
    };
    draft.put(Kind::Space, space, &record)?;
    let (document, description) = (document.into(), String::new());
    let record = PolicyRecord { id: policy, name: "bench".into(), document, replaced: Vec::new(), description };
    draft.put(Kind::Policy, policy, &record)?;
    draft.commit(Entry::by_ekm("space-create", "bench"), None).await?;
    Ok((space, policy))
}
