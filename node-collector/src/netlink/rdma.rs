//! What is in use of RDMA devices (RDMA_NLDEV_CMD_RES_GET of the kernel's RDMA netlink; Linux
//! drivers/infiniband/core/nldev.c, fill_res_info).

use super::dump::{DumpError, Malformed, Question, Sink, dump, each_attribute};
use super::socket::Transport;

/// RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_RES_GET).
const RES_GET: u16 = (5 << 10) + 9;
const ATTR_DEV_NAME: u16 = 2;
const ATTR_RES_SUMMARY: u16 = 15;
const ATTR_RES_SUMMARY_ENTRY: u16 = 16;
const ATTR_RES_SUMMARY_ENTRY_NAME: u16 = 17;
const ATTR_RES_SUMMARY_ENTRY_CURR: u16 = 18;

/// How many of one kind of resource a device has given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    pub device: String,
    /// As the kernel names it: `pd`, `cq`, `qp`, `cm_id`, `mr`, `ctx`, and `srq` since 5.15.
    pub resource: String,
    pub count: u64,
}

/// Those of all devices that the socket's network namespace shows.
#[derive(Debug, Default)]
pub struct Resources {
    all: Vec<InUse>,
}

impl Resources {
    pub fn iter(&self) -> impl Iterator<Item = &InUse> {
        self.all.iter()
    }
}

impl Sink for Resources {
    fn begin(&mut self) {
        self.all.clear();
    }

    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let (mut device, mut summary) = (None, None);
        each_attribute(payload, |attribute, value| match attribute {
            ATTR_DEV_NAME => device = Some(value),
            ATTR_RES_SUMMARY => summary = Some(value),
            _ => {}
        })?;
        let device = text(device.ok_or(Malformed("an RDMA device without a name"))?)?;
        let mut entries = Vec::new();
        // Absent: the driver keeps no account.
        each_attribute(summary.unwrap_or_default(), |attribute, value| {
            if attribute == ATTR_RES_SUMMARY_ENTRY {
                entries.push(value);
            }
        })?;
        for entry in entries {
            let (mut resource, mut count) = (None, None);
            each_attribute(entry, |attribute, value| match attribute {
                ATTR_RES_SUMMARY_ENTRY_NAME => resource = Some(value),
                ATTR_RES_SUMMARY_ENTRY_CURR => count = value.try_into().ok().map(u64::from_ne_bytes),
                _ => {}
            })?;
            self.all.push(InUse {
                device: device.to_owned(),
                resource: text(resource.ok_or(Malformed("an RDMA resource without a name"))?)?.to_owned(),
                count: count.ok_or(Malformed("an RDMA resource without its count in 64 bits"))?,
            });
        }
        Ok(())
    }
}

fn text(value: &[u8]) -> Result<&str, Malformed> {
    let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(name).map_err(|_| Malformed("an RDMA name that is not UTF-8"))
}

/// `Ok(false)`: this kernel has no RDMA.
pub fn read(transport: &dyn Transport, buffer: &mut [u8], resources: &mut Resources) -> Result<bool, DumpError> {
    let question = Question {
        kind: RES_GET,
        payload: &[],
        answer: RES_GET,
    };
    match dump(transport, question, buffer, resources) {
        Ok(()) => Ok(true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::dump::tests::{Play, Stage};
    use super::super::message::request;
    use super::*;

    fn attributes(list: &[(u16, &[u8])]) -> Vec<u8> {
        request(0, 0, 0, &[], list)[16..].to_vec()
    }

    fn entry(name: &[u8], count: &[u8]) -> Vec<u8> {
        attributes(&[
            (ATTR_RES_SUMMARY_ENTRY_NAME, name),
            (ATTR_RES_SUMMARY_ENTRY_CURR, count),
        ])
    }

    /// With the flag of nested attributes, as kernels since 5.2 send it.
    const NESTED: u16 = 0x8000;

    fn device(name: &[u8], entries: &[Vec<u8>]) -> Vec<u8> {
        let entries: Vec<(u16, &[u8])> = entries
            .iter()
            .map(|entry| (ATTR_RES_SUMMARY_ENTRY | NESTED, &entry[..]))
            .collect();
        let summary = attributes(&entries);
        let index = 3u32.to_ne_bytes();
        attributes(&[
            (1, &index),
            (ATTR_DEV_NAME, name),
            (ATTR_RES_SUMMARY | NESTED, &summary),
        ])
    }

    fn ask(messages: Vec<Vec<u8>>) -> Result<Vec<(String, String, u64)>, DumpError> {
        let mut play: Vec<_> = messages.into_iter().map(|m| (RES_GET, 2, m)).collect();
        play.push((3, 2, vec![0; 4]));
        let stage = Stage::new(vec![vec![Play::Messages(play)]]);
        let mut resources = Resources::default();
        assert!(read(&stage, &mut [0; 4096], &mut resources)?);
        let request = &stage.requests.lock().unwrap()[0];
        assert_eq!(request[4..6], 0x1409_u16.to_ne_bytes());
        Ok(resources
            .all
            .into_iter()
            .map(|one| (one.device, one.resource, one.count))
            .collect())
    }

    #[test]
    fn every_resource_of_every_device_is_told() {
        let count = |n: u64| n.to_ne_bytes();
        let all = ask(vec![
            device(
                b"mlx5_0\0",
                &[entry(b"pd\0", &count(5)), entry(b"qp\0", &count(u64::MAX))],
            ),
            device(b"erdma_0\0", &[entry(b"mr\0", &count(0))]),
            // A driver without an account.
            attributes(&[(ATTR_DEV_NAME, b"rxe0\0")]),
        ]);
        let expected = [("mlx5_0", "pd", 5), ("mlx5_0", "qp", u64::MAX), ("erdma_0", "mr", 0)];
        assert_eq!(all.unwrap(), expected.map(|(d, r, n)| (d.to_owned(), r.to_owned(), n)));
    }

    #[test]
    fn a_message_that_lacks_something_is_an_error_and_nothing_of_the_dump_is_told() {
        for bad in [
            attributes(&[(1, &[0; 4])]),
            device(b"\xff\0", &[]),
            device(b"mlx5_0\0", &[entry(b"qp\0", &[1, 0, 0, 0])]),
            device(b"mlx5_0\0", &[attributes(&[(ATTR_RES_SUMMARY_ENTRY_CURR, &[0; 8])])]),
            device(b"mlx5_0\0", &[vec![200, 0, 17, 0]]),
        ] {
            let good = device(b"rxe0\0", &[entry(b"cq\0", &[0; 8])]);
            assert!(matches!(ask(vec![good, bad]), Err(DumpError::Malformed(_))));
        }
    }
}
