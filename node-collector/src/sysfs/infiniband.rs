//! Counters of RDMA devices: a file each below `/sys/class/infiniband/DEVICE/ports/PORT/{counters,hw_counters}`, and
//! `DEVICE/hw_counters` for those of the whole device.

use std::fs;
use std::io;
use std::path::Path;

use sonde_common::paths::HostPaths;

/// One counter of one port; port 0 is the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    pub device: String,
    pub port: u32,
    pub name: String,
    pub value: u64,
}

/// What there is, in order of device, port and name, and what could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub counters: Vec<Counter>,
    pub failed: Vec<String>,
}

/// Not a counter: how long, in milliseconds, the driver may answer from its own copy.
const LIFESPAN: &str = "lifespan";

/// All counters; `None` without RDMA devices.
///
/// A counter that the driver refuses to tell (EINVAL, EOPNOTSUPP) is left out: drivers list what a device lacks.
pub fn read(sys: &Path) -> io::Result<Option<Found>> {
    let class = sys.join("class/infiniband");
    let Some(devices) = names(&class)? else {
        return Ok(None);
    };
    let mut found = Found::default();
    for device in devices {
        let dir = class.join(&device);
        let mut places = vec![(0, dir.join("hw_counters"))];
        let mut ports: Vec<u32> = names(&dir.join("ports"))?
            .unwrap_or_default()
            .iter()
            .filter_map(|port| port.parse().ok())
            .collect();
        ports.sort_unstable();
        for port in ports {
            let dir = dir.join("ports").join(port.to_string());
            places.push((port, dir.join("counters")));
            places.push((port, dir.join("hw_counters")));
        }
        for (port, dir) in places {
            for name in names(&dir)?.unwrap_or_default() {
                if name == LIFESPAN {
                    continue;
                }
                match fs::read_to_string(dir.join(&name)) {
                    // What the kernel writes where the device does not answer.
                    Ok(text) if text.starts_with("N/A") => {}
                    Ok(text) => match text.trim().parse() {
                        Ok(value) => found.counters.push(Counter {
                            device: device.clone(),
                            port,
                            name,
                            value,
                        }),
                        Err(_) => found
                            .failed
                            .push(format!("{device} port {port}: {name}: expected a number")),
                    },
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) => {}
                    Err(e) => found.failed.push(format!("{device} port {port}: {name}: {e}")),
                }
            }
        }
    }
    Ok(Some(found))
}

pub fn has_devices(paths: &HostPaths) -> bool {
    fs::read_dir(paths.sys.join("class/infiniband")).is_ok_and(|mut devices| devices.next().is_some())
}

fn names(dir: &Path) -> io::Result<Option<Vec<String>>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(Some(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_device_and_ports_in_order() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let class = dir.path().join("class/infiniband/mlx5_0");
        for (place, text) in [
            ("hw_counters/cmdq_submitted_cnt", "5\n"),
            ("ports/1/counters/port_rcv_data", "18446744073709551615\n"),
            ("ports/1/hw_counters/out_of_buffer", "3\n"),
            ("ports/1/hw_counters/lifespan", "10\n"),
            ("ports/10/counters/port_rcv_data", "N/A (no PMA)\n"),
            ("ports/10/counters/symbol_error", "x\n"),
            ("ports/2/counters/port_rcv_data", "7\n"),
        ] {
            let path = class.join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let Found { counters, failed } = read(dir.path()).unwrap().unwrap();
        let all: Vec<_> = counters.iter().map(|c| (c.port, c.name.as_str(), c.value)).collect();
        assert_eq!(
            all,
            [
                (0, "cmdq_submitted_cnt", 5),
                (1, "port_rcv_data", u64::MAX),
                (1, "out_of_buffer", 3),
                (2, "port_rcv_data", 7)
            ]
        );
        assert_eq!(failed, ["mlx5_0 port 10: symbol_error: expected a number"]);
    }
}
