//! A writer that knows what it was told to be written.

use snapshot::nbd::{Client, ClientError};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

/// The last number that each block was acknowledged to hold.
#[derive(Clone, Debug)]
pub struct Acknowledged(Vec<u64>);

impl Default for Acknowledged {
    fn default() -> Self {
        Acknowledged(vec![0; BLOCKS as usize])
    }
}

impl Acknowledged {
    /// Writes counting numbers block by block, by FUA, with a FLUSH after it, and without either in turn, until the
    /// connection breaks. A process that dies must lose none of them: the system still has them.
    pub fn write_on(&mut self, mut client: Client) {
        let next = self.0.iter().max().map_or(1, |last| last + 1);
        for number in next.. {
            let block = number % BLOCKS;
            if write_one(&mut client, block, number).is_err() {
                break;
            }
            self.0[block as usize] = number;
        }
    }

    /// A block may hold a number that was not acknowledged any more, but no earlier one.
    ///
    /// # Panics
    /// When one does.
    pub fn assert_held_by(&self, client: &mut Client) {
        for (block, acknowledged) in self.0.iter().enumerate() {
            let mut bytes = vec![0; BLOCK];
            client.read((block * BLOCK) as u64, &mut bytes).unwrap();
            let numbers: Vec<u64> =
                bytes.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number)).collect();
            assert!(
                numbers.iter().all(|number| *number == numbers[0] && number >= acknowledged),
                "block {block} holds {} where {acknowledged} was acknowledged",
                numbers[0]
            );
        }
    }
}

fn write_one(client: &mut Client, block: u64, number: u64) -> Result<(), ClientError> {
    let bytes = number.to_le_bytes().repeat(BLOCK / 8);
    client.write(block * BLOCK as u64, &bytes, number.is_multiple_of(3))?;
    if number % 3 == 1 { client.flush() } else { Ok(()) }
}
