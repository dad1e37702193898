//! Connections in their negotiation: many cost little, and none keeps another out.
//!
//! They are tasks, not threads, and at most so many at a time: when one more comes, the one that
//! deserves it least is sent away, which is the oldest of those that never said a word, or else the one that
//! has been silent longest. So whoever connects and says nothing, a thousand times over, only pushes out
//! himself.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

struct Guest {
    /// It sent a whole message.
    spoke: bool,
    /// When it came or spoke last, in steps of [`Guests::clock`].
    last: u64,
    leave: Arc<Notify>,
}

#[derive(Default)]
struct Guests {
    present: BTreeMap<u64, Guest>,
    clock: u64,
    sent_away: u64,
}

/// See the module.
pub struct Lobby {
    places: usize,
    guests: Mutex<Guests>,
}

/// A place in the lobby, given back when dropped.
pub struct Place {
    lobby: Arc<Lobby>,
    number: u64,
    leave: Arc<Notify>,
}

impl Lobby {
    /// With so many places; at least one.
    pub fn new(places: usize) -> Arc<Lobby> {
        Arc::new(Lobby { places: places.max(1), guests: Mutex::default() })
    }

    /// Takes in a connection, numbers being unique; sends another one away if all places are taken.
    pub fn enter(self: &Arc<Self>, number: u64) -> Place {
        let mut guests = self.guests.lock();
        while guests.present.len() >= self.places {
            guests.send_one_away();
        }
        guests.clock += 1;
        let leave = Arc::new(Notify::new());
        let guest = Guest { spoke: false, last: guests.clock, leave: Arc::clone(&leave) };
        guests.present.insert(number, guest);
        Place { lobby: Arc::clone(self), number, leave }
    }

    /// Sends one away: something else needs its descriptor.
    pub fn make_room(&self) {
        self.guests.lock().send_one_away();
    }

    /// Sends all away.
    pub fn clear(&self) {
        let mut guests = self.guests.lock();
        for guest in std::mem::take(&mut guests.present).into_values() {
            guest.leave.notify_one();
        }
    }

    /// How many are in their negotiation.
    pub fn present(&self) -> usize {
        self.guests.lock().present.len()
    }
}

impl Guests {
    fn send_one_away(&mut self) {
        let least = self.present.iter().min_by_key(|(_, guest)| (guest.spoke, guest.last));
        let Some((&number, _)) = least else { return };
        if let Some(guest) = self.present.remove(&number) {
            guest.leave.notify_one();
        }
        self.sent_away += 1;
        // A flood is worth a few lines, not one a connection.
        if self.sent_away.is_power_of_two() {
            tracing::warn!(
                present = self.present.len(),
                sent_away = self.sent_away,
                "many NBD connections are silent in their negotiation; closing the oldest"
            );
        }
    }
}

impl Place {
    /// The connection sent a whole message.
    pub fn spoke(&self) {
        let mut guests = self.lobby.guests.lock();
        guests.clock += 1;
        let clock = guests.clock;
        if let Some(guest) = guests.present.get_mut(&self.number) {
            guest.spoke = true;
            guest.last = clock;
        }
    }

    /// Waits until the connection is sent away.
    pub async fn sent_away(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lobby.guests.lock().present.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(lobby: &Lobby) -> Vec<u64> {
        lobby.guests.lock().present.keys().copied().collect()
    }

    #[test]
    fn the_oldest_silent_one_goes_first_then_the_one_silent_longest() {
        let lobby = Lobby::new(3);
        let places: Vec<_> = (1..=3).map(|number| lobby.enter(number)).collect();
        places[0].spoke();
        let _four = lobby.enter(4);
        assert_eq!(present(&lobby), [1, 3, 4], "2 came before 3, and 1 has spoken");
        let five = lobby.enter(5);
        five.spoke();
        let _six = lobby.enter(6);
        assert_eq!(present(&lobby), [1, 5, 6]);
        _six.spoke();
        places[0].spoke();
        let _seven = lobby.enter(7);
        assert_eq!(present(&lobby), [1, 6, 7], "all had spoken, 5 first");
        drop((places, _six));
        assert_eq!(present(&lobby), [7]);
        lobby.clear();
        assert_eq!(lobby.present(), 0);
    }

    #[test]
    fn a_thousand_silent_ones_do_not_push_out_one_that_speaks() {
        let lobby = Lobby::new(8);
        let good = lobby.enter(0);
        good.spoke();
        let silent: Vec<_> = (1..=1000).map(|number| lobby.enter(number)).collect();
        assert_eq!(lobby.present(), 8);
        assert!(present(&lobby).contains(&0));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(silent[0].sent_away());
    }
}
