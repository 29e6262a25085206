//! Puts the parts together, watches them, and ends them in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use sonde_common::config::{Config, PodSource};
use sonde_common::shutdown::{self, Shutdown};
use sonde_common::time::now_ns;
use sonde_proto::v1;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::check;
use crate::gaps::GapLog;
use crate::handles::Wanted;
use crate::kernel::{GovernorThread, Kernel, SignalStatus};
use crate::missing::Missing;
use crate::netfilter::Explainer;
use crate::pipeline::{EventStats, Pipeline};
use crate::pods::cri::{self, Board, CriSource};
use crate::pods::names::Globs;
use crate::pods::netns::{self, NetnsSource, Settings};
use crate::pods::{PodIndex, Targets};
use crate::probes::{self, PROBES, PROCESS_PROBES, Registration};
use crate::processes::{Finder, ProcessRounds};
use crate::reading::{self, Parts, Reading, RoundLog};
use crate::reload::{self, Reloader};
use crate::round::Rounds;
use crate::serve::{self, metrics};
use crate::ship::client::{self, Client, Link};
use crate::ship::spool::Spool;
use crate::ship::writer::{Shipper, Writer};
use crate::sinks::Sinks;
use crate::switched::Switched;

/// Vectors of observations between the kernel side and the pipeline.
const OBSERVATIONS: usize = 256;
/// How long what is on its way may take at the end.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// Runs until `shutdown`. Of `file`, from which the configuration came, what may change is followed. What cannot start is an error of one line; what the host does not permit is said and left out.
pub async fn run(mut config: Config, file: Option<PathBuf>, mut shutdown: Shutdown) -> anyhow::Result<()> {
    // From the first moment on: by itself it would end the process.
    let hangup = signal(SignalKind::hangup())?;
    let read = reload::stamp(file.as_deref());
    crate::check(&config)?;
    config.probes = check::by_our_names(config.probes);
    let settings_now = Arc::new(reload::Settings::new(config.clone(), file));
    let started = Instant::now();
    let listener = bind(config.collector.http).await?;
    let handles = raise_open_files();
    let paths = config.host.paths();
    let boot = boot_id(&config);
    let (spool, recovery) = Spool::open(
        &config.collector.data_dir.join("spool"),
        config.spool.max_bytes,
        &boot.to_string(),
    )?;
    let spool = Arc::new(spool);
    tracing::info!(
        node = %config.node.name, spool = %spool.epoch(), resumed = recovery.resumed, "collector starts"
    );

    let missing = Arc::new(Missing::default());
    let node = netns::own_netns(&paths).with_context(|| format!("host.proc: `{}`", paths.proc.display()))?;
    let index = Arc::new(PodIndex::new(node));
    let targets = Arc::new(Targets::default());
    let (observed, observations) = tokio::sync::mpsc::channel(OBSERVATIONS);
    let (kernel, signals) = {
        let (config, index) = (config.clone(), Arc::clone(&index));
        spawn_blocking(move || Kernel::start(&config, index, observed)).await?
    };
    say_missing(&signals, &missing);
    let visits_due = kernel.visits_due();
    let kernel = Arc::new(Mutex::new(kernel));

    let cri = start_cri(&config, &index, &missing).await;
    let enabled: Vec<&'static Registration> = PROBES.iter().filter(|p| is_enabled(&config, p.spec.name)).collect();
    let settings = Settings {
        globs: named_namespaces(&config)?,
        cri: cri.as_ref().map(|(_, board)| Arc::clone(board)),
        node_name: config.node.name.clone(),
        include_host: config.pods.include_host,
        // Also for those that are off: they may come on.
        pod: Wanted::of(PROBES.iter().filter(|p| !p.node_only)),
        node: Wanted::of(PROBES),
        keep_handles: handles / 4 * 3,
        on_change: Box::new({
            let kernel = Arc::clone(&kernel);
            move |live| kernel.lock().netns_changed(live)
        }),
        visit: Some(Box::new({
            let kernel = Arc::clone(&kernel);
            move |netns| kernel.lock().visit(netns)
        })),
        visits_due,
        paths,
    };
    let source = {
        let (index, targets, missing) = (Arc::clone(&index), Arc::clone(&targets), Arc::clone(&missing));
        spawn_blocking(move || NetnsSource::start(settings, index, targets, missing)).await??
    };

    let gaps = Arc::new(GapLog::default());
    let (writer, shipper) = Writer::start(Arc::clone(&spool), Arc::clone(&index), Arc::clone(&gaps), recovery)?;
    let sinks = Arc::new(Sinks::start(&config.sinks, &config.node.name, shipper.clone())?);
    let events = Arc::new(EventStats::default());
    let explainer = {
        let (shipper, sinks) = (shipper.clone(), Arc::clone(&sinks));
        let (index, targets, missing) = (Arc::clone(&index), Arc::clone(&targets), Arc::clone(&missing));
        Explainer::start(&config, index, targets, missing, move |events| {
            sinks.events(&events);
            shipper.events(events);
        })?
    };
    let (netfilter, tracing) = (explainer.stats(), explainer.tracing());
    let pipeline = Pipeline::new(
        &config,
        Arc::clone(&index),
        source.rescan(),
        shipper.clone(),
        Arc::clone(&sinks),
        explainer,
        Arc::clone(&events),
    );
    let pipeline = tokio::spawn(pipeline.run(observations));
    let clock = {
        let shipper = shipper.clone();
        AbortOnDropHandle::new(tokio::spawn(crate::kernel::watch_clock(move |gaps| shipper.gaps(gaps))))
    };

    let link = Arc::new(Link::default());
    let (end_client, client_ends) = shutdown::channel();
    let client = start_client(
        &config,
        boot,
        &spool,
        &link,
        &shipper,
        settings_now.interval_ns(),
        client_ends,
    )?;

    let rounds = Rounds::new(enabled);
    let round_log = Arc::new(RoundLog::default());
    let on = PROCESS_PROBES.iter().filter(|p| is_enabled(&config, p.spec.name));
    let host = config.host.paths();
    let processes = ProcessRounds::new(on, &host, Finder::new(&host), handles / 4);
    let probe_stats = vec![rounds.stats(), processes.stats()];
    let governor = GovernorThread::start(Arc::clone(&kernel), {
        let shipper = shipper.clone();
        move |changed| {
            shipper.rows(Arc::new(changed.tables));
            shipper.gaps(changed.gaps);
        }
    })?;
    let mut switched = Switched::default();
    reading::note(&mut switched, &config, now_ns());
    let reading = Reading::start(
        Parts {
            rounds,
            processes,
            kernel,
            targets,
            index: Arc::clone(&index),
            shipper,
            log: Arc::clone(&round_log),
            events: Arc::clone(&events),
            switched,
        },
        config.collector.interval.0,
    )?;

    let state = serve::State {
        node: config.node.name.clone(),
        targets: config.collector.aggregator.0.clone(),
        started,
        settings: Arc::clone(&settings_now),
        spool_max_bytes: config.spool.max_bytes,
        exposition: metrics::Exposition::new(&config.node.name, &config.metrics)?,
        renderings: AtomicU64::new(0),
        index,
        rounds: round_log,
        probes: probe_stats,
        events,
        netfilter,
        gaps,
        missing: Arc::clone(&missing),
        spool: Arc::clone(&spool),
        link,
        sinks: Arc::clone(&sinks),
    };
    tracing::info!(http = %listener.local_addr()?, "collector serves");
    let (end_http, http_ends) = shutdown::channel();
    let http = tokio::spawn(serve::serve(listener, Arc::new(state), http_ends));

    let reloader = Reloader {
        settings: &settings_now,
        sinks: &sinks,
        reading: &reading,
        missing: &missing,
        tracing,
        read,
        seen: read,
        hangup,
    };
    let result = watch(&mut shutdown, cri.as_ref(), &source, &writer, &http, &client, reloader).await;
    tracing::info!("collector ends");
    drop(clock);
    drop(cri);
    spawn_blocking(move || {
        drop(governor);
        // The last round reads the kernel's maps; after it nobody holds the programs, and the observations end.
        drop(reading);
        drop(source);
    })
    .await?;
    if tokio::time::timeout(LAST_EVENTS, pipeline).await.is_err() {
        tracing::warn!("last events did not arrive in time");
    }
    sinks.end().await;
    spawn_blocking(move || writer.stop()).await?;
    if config.collector.aggregator.0.is_empty() || tokio::time::timeout(client::DRAIN, drained(&spool)).await.is_err() {
        tracing::info!(
            frames = spool.stats().frames,
            "what is not stored yet stays in the spool"
        );
    }
    end_client.fire();
    end_http.fire();
    let _ = client.await;
    // A client that holds a request open does not hold the end up.
    let _ = tokio::time::timeout(Duration::from_millis(500), http).await;
    result
}

/// Asks the container runtime, if the configuration wants that, and waits a little for its first answer.
async fn start_cri(config: &Config, index: &Arc<PodIndex>, missing: &Arc<Missing>) -> Option<(CriSource, Arc<Board>)> {
    if !config.pods.sources.contains(&PodSource::Cri) {
        return None;
    }
    let settings = cri::Settings::of(config);
    let board = Arc::new(Board::default());
    let mut source = CriSource::start(settings, Arc::clone(&board), Arc::clone(index), Arc::clone(missing));
    source.first_look().await;
    Some((source, board))
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|e| anyhow!("collector.http: `{address}`: {e}"))
}

/// Resolves when the end is asked for, or with an error when a part ended that must not.
async fn watch(
    shutdown: &mut Shutdown,
    cri: Option<&(CriSource, Arc<Board>)>,
    source: &NetnsSource,
    writer: &Writer,
    http: &JoinHandle<std::io::Result<()>>,
    client: &JoinHandle<()>,
    mut reloader: Reloader<'_>,
) -> anyhow::Result<()> {
    let mut clock = tokio::time::interval(reload::LOOK);
    loop {
        tokio::select! {
            () = shutdown.recv() => return Ok(()),
            Some(()) = reloader.hangup.recv() => {
                reloader.sinks.reopen();
                reloader.reload().await;
            }
            _ = clock.tick() => reloader.look().await,
        }
        reloader.sinks.tell_losses();
        // The pipeline may end: the kernel side has nothing to tell where eBPF is off.
        for (what, ended) in [
            ("discovery of pods", source.has_failed()),
            (
                "watch of the container runtime",
                cri.is_some_and(|(source, _)| source.has_failed()),
            ),
            ("thread of rounds", reloader.reading.has_failed()),
            ("spool writer", writer.has_failed()),
            ("http server", http.is_finished()),
            ("client of the aggregator", client.is_finished()),
        ] {
            if ended {
                bail!("{what} ended unexpectedly");
            }
        }
    }
}

async fn drained(spool: &Spool) {
    let mut appended = tokio::time::interval(Duration::from_millis(20));
    while !spool.is_drained() {
        appended.tick().await;
    }
}

fn start_client(
    config: &Config,
    boot: Uuid,
    spool: &Arc<Spool>,
    link: &Arc<Link>,
    shipper: &Shipper,
    interval_ns: watch::Receiver<u64>,
    end: Shutdown,
) -> anyhow::Result<JoinHandle<()>> {
    if config.collector.aggregator.0.is_empty() {
        return Ok(tokio::spawn(forget(Arc::clone(spool), end)));
    }
    let hello = v1::Hello {
        node: config.node.name.clone(),
        boot_id: boot.as_bytes().to_vec(),
        epoch: spool.epoch().as_bytes().to_vec(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel_release(),
        interval_ns: config.collector.interval.as_nanos(),
        catalogue: Some(v1::Catalogue {
            probes: probes::specs().iter().map(|spec| spec.to_proto()).collect(),
        }),
    };
    let client = Client::new(
        &config.collector.aggregator.0,
        hello,
        Arc::clone(spool),
        Arc::clone(link),
        shipper.clone(),
    )
    .map_err(|e| anyhow!(e))?
    .following(interval_ns);
    Ok(tokio::spawn(client.run(end)))
}

/// Without an aggregator nobody acks, so the spool does.
async fn forget(spool: Arc<Spool>, mut end: Shutdown) {
    let mut appended = spool.appended();
    loop {
        let last = *appended.borrow_and_update();
        if let Err(error) = spool.acked(last) {
            tracing::warn!(%error, "spool cannot be trimmed");
        }
        tokio::select! {
            changed = appended.changed() => if changed.is_err() { return },
            () = end.recv() => return,
        }
    }
}

fn is_enabled(config: &Config, probe: &str) -> bool {
    config.is_enabled(probe, true)
}

fn named_namespaces(config: &Config) -> anyhow::Result<Option<Globs>> {
    if !config.pods.sources.contains(&PodSource::Netns) {
        return Ok(None);
    }
    Ok(Some(Globs::new(&config.pods.netns.include)?))
}

pub(crate) fn say_missing(signals: &[SignalStatus], missing: &Missing) {
    for signal in signals {
        match signal.rung {
            Some(rung) => tracing::info!(signal = signal.name, rung, reason = signal.reason, "kernel signal on"),
            None if signal.chosen => {
                tracing::info!(signal = signal.name, reason = signal.reason, "kernel signal off");
            }
            None => missing.say(signal.name, &signal.reason),
        }
    }
}

/// All zeros where the kernel does not tell.
fn boot_id(config: &Config) -> Uuid {
    let path = config.host.proc.join("sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    Uuid::parse_str(text.trim()).unwrap_or_default()
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned())
}

/// Raises the limit of open files as far as permitted. How many may be files of `/proc` that are kept open: three
/// quarters.
fn raise_open_files() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 0;
    };
    let now = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    usize::try_from(now / 4 * 3).unwrap_or(usize::MAX)
}
