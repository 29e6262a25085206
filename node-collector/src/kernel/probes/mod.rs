//! The probes of the kernel side: one file each, one line in [`ALL`].

mod connect;
mod dns;
mod flow;
mod kernellatency;
mod net_softirq;
mod netiftxlat;
mod packetloss;
mod socketlatency;
mod tcpreset;
mod tcpretrans;
mod virtcmdlatency;

pub(super) use flow::sweep;

use super::plan::Signal;
use super::probe::KernelProbe;

/// Every probe of this kind.
pub(crate) const ALL: &[&KernelProbe] = &[
    &packetloss::PROBE,
    &tcpretrans::PROBE,
    &tcpreset::PROBE,
    &socketlatency::PROBE,
    &connect::PROBE,
    &net_softirq::PROBE,
    &virtcmdlatency::PROBE,
    &netiftxlat::PROBE,
    &kernellatency::PROBE,
    &flow::PROBE,
    &dns::PROBE,
];

/// The probe of that name.
pub(crate) fn find(name: &str) -> Option<&'static KernelProbe> {
    ALL.iter().copied().find(|probe| probe.spec.name == name)
}

/// All decoders there are, without the maps of any program.
#[cfg(any(test, fuzzing))]
pub(super) fn decoders(symbols: &std::sync::Arc<super::symbols::Symbols>) -> super::probe::Decoders {
    let sites = super::sites::Sites::new(Default::default(), symbols.clone(), None);
    let mut all = packetloss::decoders(std::sync::Arc::new(sites));
    all.extend(tcpretrans::decoders(symbols));
    all.extend(tcpreset::decoders(None, symbols, Default::default()));
    all.extend(socketlatency::decoders(symbols));
    all.extend(net_softirq::decoders(symbols));
    all.extend(virtcmdlatency::decoders(symbols));
    all.extend(netiftxlat::decoders(symbols, &super::probe::live_with_sample(1)));
    all.extend(kernellatency::decoders(symbols, &super::probe::live_with_sample(2)));
    all
}

pub(super) fn signals() -> impl Iterator<Item = &'static Signal> {
    ALL.iter().flat_map(|probe| probe.signals.iter().copied())
}
