//! What the clients did and learned: against this every image is checked.

use std::ops::Range;

/// A sector, the unit that clients write.
pub const SECTOR: u64 = 512;
/// Sectors of a block.
pub const BLOCK: u64 = 8;
/// Sectors in which clients write next to each other. Sector n is the client's with the number n, modulo the clients.
pub const SHARED: u64 = 3 * BLOCK;
/// Sectors of a unit, of which each client has one: it is written whole, then a part of it is made zero, and so on. The
/// first sector, the anchor, is never made zero, so it shows which of these zeros others are.
pub const UNIT: u64 = 2 * BLOCK;
/// Clients at most.
pub const CLIENTS: u64 = 4;
/// Sectors of every host's volume.
pub const SECTORS: u64 = SHARED + CLIENTS * UNIT;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No answer yet, or none ever: it may have been done.
    Unknown,
    /// Acknowledged.
    Done,
    /// A crash took it before any flush, or a restore did.
    Lost,
}

/// One write of one client. A client has no more than one on its way.
#[derive(Clone, Debug)]
pub struct Write {
    /// Who.
    pub client: usize,
    /// The client's own number of it, from 1.
    pub number: u32,
    /// Where.
    pub host: usize,
    /// What.
    pub sectors: Range<u64>,
    /// It makes them zero.
    pub zeros: bool,
    /// The latest write of each client that this one may depend on.
    pub knows: Vec<u32>,
    /// When the host had all of it.
    pub received: Option<i64>,
    /// When the device had done it.
    pub returned: Option<i64>,
    /// The T_i of the cut that its answer waited for.
    pub held_by: Option<i64>,
    /// When its answer left the host.
    pub sent: Option<i64>,
    /// What became of it.
    pub fate: Fate,
    /// Whether the client has heard that it was done.
    pub acknowledged: bool,
    /// Since when it may be lost.
    pub lost_at: Option<i64>,
    /// Whether it is durable: answered with FUA, or before a flush.
    pub durable: bool,
}

/// Everything that was done.
#[derive(Debug)]
pub struct History {
    /// In the order in which they were issued.
    pub writes: Vec<Write>,
    /// For each client, its writes.
    by_client: Vec<Vec<usize>>,
    /// For each host and sector, its writes. A sector has one writer.
    by_sector: Vec<Vec<Vec<usize>>>,
    /// For each host, the writes that no flush has made durable.
    fleeting: Vec<Vec<usize>>,
    /// Readers' answers that showed a write: host, write, the T_i it waited for, and when it left.
    pub revealed: Vec<(usize, usize, Option<i64>, i64)>,
}

impl History {
    /// Nothing yet.
    pub fn new(clients: usize, hosts: usize) -> Self {
        History {
            writes: Vec::new(),
            by_client: vec![Vec::new(); clients],
            by_sector: vec![vec![Vec::new(); SECTORS as usize]; hosts],
            fleeting: vec![Vec::new(); hosts],
            revealed: Vec::new(),
        }
    }

    /// Adds a write, and gives its place.
    pub fn issue(
        &mut self,
        client: usize,
        host: usize,
        sectors: Range<u64>,
        zeros: bool,
        knows: Vec<u32>,
        fua: bool,
    ) -> usize {
        let place = self.writes.len();
        self.by_client[client].push(place);
        self.fleeting[host].push(place);
        let number = u32::try_from(self.by_client[client].len()).unwrap_or(u32::MAX);
        for sector in sectors.clone() {
            self.by_sector[host][sector as usize].push(place);
        }
        self.writes.push(Write {
            client,
            number,
            host,
            sectors,
            zeros,
            knows,
            received: None,
            returned: None,
            held_by: None,
            sent: None,
            fate: Fate::Unknown,
            acknowledged: false,
            lost_at: None,
            durable: fua,
        });
        place
    }

    /// A client's write by its number.
    pub fn of(&self, client: usize, number: u32) -> Option<&Write> {
        let place = self.by_client.get(client)?.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
        Some(&self.writes[*place])
    }

    /// The place of a client's write.
    pub fn place(&self, client: usize, number: u32) -> Option<usize> {
        self.by_client.get(client)?.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
    }

    /// The writes of a sector, oldest first.
    pub fn of_sector(&self, host: usize, sector: u64) -> impl DoubleEndedIterator<Item = (usize, &Write)> {
        self.by_sector[host][sector as usize].iter().map(|&place| (place, &self.writes[place]))
    }

    /// The first write of a sector after the one that it shows.
    pub fn next_of_sector(&self, host: usize, sector: u64, shown: u32) -> Option<(usize, &Write)> {
        let places = &self.by_sector[host][sector as usize];
        let place = *places.get(places.partition_point(|&place| self.writes[place].number <= shown))?;
        Some((place, &self.writes[place]))
    }

    /// The last write of a sector that was acknowledged and not lost.
    pub fn last_done(&self, host: usize, sector: u64) -> Option<(usize, &Write)> {
        self.of_sector(host, sector).rfind(|(_, write)| write.fate == Fate::Done)
    }

    /// The last write that a client issued to its unit.
    pub fn last_of_unit(&self, client: usize, host: usize) -> Option<(usize, &Write)> {
        let sectors = unit(client);
        let place = sectors.filter_map(|sector| self.by_sector[host][sector as usize].last()).max()?;
        Some((*place, &self.writes[*place]))
    }

    /// What sectors from `first` on show. None where one is torn. `at_once`: as they all were at one instant.
    pub fn versions(&self, host: usize, first: u64, data: &[u8], at_once: bool) -> Vec<Option<Version>> {
        let mut anchor = None;
        let version = |(content, sector): (&[u8], u64)| {
            let (client, number) = writer(content)?;
            if owner(sector).is_some_and(|owner| unit(owner).start == sector) {
                anchor = Some(number);
            }
            Some(match owner(sector) {
                Some(owner) if number == 0 => self.zero(host, sector, owner, anchor, at_once),
                _ => Version { client, least: number, most: number },
            })
        };
        data.chunks_exact(SECTOR as usize).zip(first..).map(version).collect()
    }

    /// Which of its zeros a sector of a unit shows, whose anchor shows a write.
    fn zero(&self, host: usize, sector: u64, client: usize, anchor: Option<u32>, at_once: bool) -> Version {
        let latest = self.of_sector(host, sector).rfind(|(_, write)| write.zeros);
        let latest = latest.map_or(0, |(_, write)| write.number);
        let next = |shown| self.next_of_sector(host, sector, shown);
        let (least, exactly) = match (anchor, anchor.and_then(next)) {
            (Some(0), _) => (0, true),
            (_, Some((_, write))) if write.zeros => (write.number, true),
            // A crash has torn the unit, or its anchor is not there.
            _ => (0, false),
        };
        let most = match anchor {
            Some(anchor) if exactly && at_once => least.max(self.zeros_after(host, sector, anchor)),
            _ => latest,
        };
        Version { client, least, most }
    }

    /// The last zeros of a sector that may have come while its anchor showed a write, 0 if none: each write of the
    /// unit between the two was lost before they came. That happens when a restore takes it away while they are under
    /// way.
    fn zeros_after(&self, host: usize, sector: u64, anchor: u32) -> u32 {
        let (mut last, mut lost_at) = (0, None);
        for (_, write) in self.of_sector(host, sector).skip_while(|(_, write)| write.number <= anchor) {
            if write.zeros {
                last = if write.received > lost_at { write.number } else { last };
            } else if write.lost_at.is_some() {
                lost_at = lost_at.max(write.lost_at);
            } else {
                break;
            }
        }
        last
    }

    /// A crash or a restore took a write away.
    pub fn lose(&mut self, place: usize, at: i64) {
        let write = &mut self.writes[place];
        (write.fate, write.lost_at) = (Fate::Lost, Some(at));
    }

    /// A flush of a host was answered that began at `began`: what was answered before is durable.
    pub fn flushed(&mut self, host: usize, began: i64) {
        let writes = &mut self.writes;
        self.fleeting[host].retain(|&place| {
            let write = &mut writes[place];
            let flushed = write.fate == Fate::Done && write.sent.is_some_and(|sent| sent < began);
            write.durable |= flushed;
            !flushed && write.fate != Fate::Lost
        });
    }
}

/// A client's unit.
pub fn unit(client: usize) -> Range<u64> {
    let start = SHARED + client as u64 * UNIT;
    start..start + UNIT
}

/// Whose unit a sector is in.
pub fn owner(sector: u64) -> Option<usize> {
    Some((sector.checked_sub(SHARED)? / UNIT) as usize)
}

/// What a sector shows: a write of its client, mostly a certain one; else one of several. 0: as in the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Whose, unless it is as in the beginning.
    pub client: usize,
    /// The number of the write at least,
    pub least: u32,
    /// and at most.
    pub most: u32,
}

impl Version {
    /// Whether it is a write, or a later one; none if nobody can tell.
    pub fn includes(self, number: u32) -> Option<bool> {
        if self.least >= number {
            Some(true)
        } else if self.most < number {
            Some(false)
        } else {
            None
        }
    }
}

/// The content of a sector that a write has written.
pub fn content(client: usize, number: u32) -> [u8; SECTOR as usize] {
    let word = ((client as u64) << 32 | u64::from(number)).to_le_bytes();
    let mut sector = [0; SECTOR as usize];
    sector.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&word));
    sector
}

/// Who wrote a sector last: client and number, 0 for nobody. None if it is torn.
pub fn writer(sector: &[u8]) -> Option<(usize, u32)> {
    let first: [u8; 8] = sector.get(..8)?.try_into().ok()?;
    if sector.chunks_exact(8).any(|chunk| chunk != first) {
        return None;
    }
    let word = u64::from_le_bytes(first);
    Some(((word >> 32) as usize, word as u32))
}
