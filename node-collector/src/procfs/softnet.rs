//! `/proc/net/softnet_stat`: hexadecimal counters of 32 bits, a line for each CPU that is online. The same in every
//! network namespace: it is the node's.

use super::number::hex32;
use super::{ParseError, lines, words};

/// One CPU. The counters wrap at 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Number of the CPU; kernels below 5.10 do not print it, then it is the number of the line.
    pub cpu: u32,
    pub processed: u32,
    pub dropped: u32,
    pub time_squeeze: u32,
    /// Interrupts from other CPUs for receive packet steering (2.6.35).
    pub received_rps: Option<u32>,
    /// Packets held back by the flow limit (3.11).
    pub flow_limit: Option<u32>,
    /// Packets that wait now (5.10).
    pub backlog: Option<u32>,
    /// The part of them that interrupts have put in, and the part that the CPU has taken over to process (after 5.10).
    pub input_queue: Option<u32>,
    pub process_queue: Option<u32>,
}

/// Calls `each` for every CPU.
pub fn parse(text: &[u8], mut each: impl FnMut(Cpu)) -> Result<(), ParseError> {
    for (number, line) in lines(text).enumerate() {
        let mut fields = [None; 16];
        for (field, word) in fields.iter_mut().zip(words(line)) {
            *field = Some(hex32(word).ok_or_else(|| ParseError::not_a_number(number + 1, word))?);
        }
        let (Some(processed), Some(dropped), Some(time_squeeze)) = (fields[0], fields[1], fields[2]) else {
            return Err(ParseError::Shape {
                line: number + 1,
                what: "expected at least 3 values",
            });
        };
        each(Cpu {
            cpu: fields[12].unwrap_or(number as u32),
            processed,
            dropped,
            time_squeeze,
            received_rps: fields[9],
            flow_limit: fields[10],
            backlog: fields[11],
            input_queue: fields[13],
            process_queue: fields[14],
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> Result<Vec<Cpu>, ParseError> {
        let mut all = Vec::new();
        parse(text.as_bytes(), |cpu| all.push(cpu)).map(|()| all)
    }

    #[test]
    fn kernels_print_ever_more_columns() {
        // 6.18, CPU 1 offline
        let text = "000028dc 00000001 00000002 0 0 0 0 0 00000000 00000003 00000004 00000005 00000000 00000005 00000000\n\
                    ffffffff 00000000 00000000 0 0 0 0 0 00000000 00000000 00000000 00000000 00000002 00000000 00000000\n";
        let all = cpus(text).unwrap();
        assert_eq!(
            all[0],
            Cpu {
                cpu: 0,
                processed: 0x28dc,
                dropped: 1,
                time_squeeze: 2,
                received_rps: Some(3),
                flow_limit: Some(4),
                backlog: Some(5),
                input_queue: Some(5),
                process_queue: Some(0),
            }
        );
        assert_eq!((all[1].cpu, all[1].processed), (2, u32::MAX));
        // 4.19: no backlog, no CPU number
        let old = cpus("00000001 0 0 0 0 0 0 0 0 0 00000007\n00000002 0 0 0 0 0 0 0 0 0 0\n").unwrap();
        assert_eq!((old[1].cpu, old[1].processed, old[1].backlog), (1, 2, None));
        assert_eq!(old[0].flow_limit, Some(7));
    }

    #[test]
    fn broken_text_is_an_error_with_its_line() {
        assert_eq!(
            cpus("1 2 3\n1 2\n"),
            Err(ParseError::Shape {
                line: 2,
                what: "expected at least 3 values"
            })
        );
        assert_eq!(
            cpus("1 2 zz\n"),
            Err(ParseError::NotANumber {
                line: 1,
                found: "zz".into()
            })
        );
    }
}
