use proptest::prelude::*;

use super::*;
use crate::position::{Epoch, Partition};

fn stay(epoch: u64) -> Stay {
    Stay { partition: Partition { source: "orders".into(), number: 0 }, epoch: Epoch(epoch) }
}

fn span(epoch: u64, after: i64, upto: i64) -> Span {
    Span { stay: stay(epoch), after, upto }
}

fn ledger_with(spans: &[(i64, i64)]) -> (Ledger, Vec<Ticket>) {
    let ledger = Ledger::new();
    ledger.begin(stay(1), spans[0].0);
    let tickets = spans.iter().map(|(after, upto)| ledger.open(&span(1, *after, *upto)).unwrap()).collect();
    (ledger, tickets)
}

#[test]
fn a_later_span_does_not_move_the_watermark_past_an_open_one() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9), (9, 19), (19, 29)]);
    assert_eq!(tickets.remove(1).settle(), None);
    assert_eq!(ledger.progress(), []);
    assert_eq!(tickets.remove(0).settle().unwrap().upto, 19);
    assert_eq!(ledger.progress(), [Watermark { stay: stay(1), upto: 19 }]);
    assert_eq!(ledger.progress(), []);
    assert_eq!(tickets.remove(0).settle().unwrap().upto, 29);
    assert!(ledger.is_quiet(&stay(1)));
    assert_eq!(ledger.open_spans(), 0);
}

/// A compacted topic begins far behind its first offset.
#[test]
fn records_are_told_apart_by_when_they_were_read() {
    let (_ledger, mut tickets) = ledger_with(&[(-1, 1_002_047), (1_002_047, 1_002_057)]);
    tickets[0].count(500, 2_048, 1_000_000);
    tickets[1].count(2_548, 5, 1_002_048);
    let held = tickets[0].hold();
    let places = [0, 1_000_000, 1_000_010, 1_002_047].map(|position| held.read_before(position));
    assert_eq!(places, [500, 500, 510, 2_547]);
    let places = [1_002_048, 1_002_053, 1_002_057].map(|position| tickets[1].read_before(position));
    assert_eq!(places, [2_548, 2_550, 2_552], "five records at ten positions");
    tickets.into_iter().chain([held]).for_each(|ticket| drop(ticket.settle()));
}

#[test]
fn a_place_without_records_is_passed_once_nothing_before_it_is_open() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9)]);
    assert!(!ledger.advance(&span(1, 9, 11)), "a span is open before it");
    drop(tickets.remove(0).settle());
    assert!(!ledger.advance(&span(1, 10, 11)), "what lies before it was never opened");
    assert!(!ledger.advance(&span(1, 9, 9)) && !ledger.advance(&span(2, 9, 11)));
    assert_eq!(ledger.progress(), [Watermark { stay: stay(1), upto: 9 }]);
    assert!(ledger.advance(&span(1, 9, 11)));
    assert_eq!(ledger.progress(), [Watermark { stay: stay(1), upto: 11 }]);
    assert_eq!(ledger.opened_upto(&stay(1)), Some(11));
    let next = ledger.open(&span(1, 11, 12)).unwrap();
    assert_eq!(ledger.watermark(&stay(1)).unwrap().upto, 11);
    assert_eq!(next.settle().unwrap().upto, 12);
}

#[test]
fn nothing_is_passed_behind_a_span_that_was_given_up() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9)]);
    tickets.remove(0).forget();
    assert!(!ledger.advance(&span(1, 9, 11)));
    assert_eq!(ledger.watermark(&stay(1)).unwrap().upto, -1);
}

#[test]
fn a_span_waits_for_all_of_its_tickets() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9)]);
    let first = tickets.remove(0);
    let second = first.hold();
    assert_eq!(first.settle(), None);
    assert_eq!(ledger.open_spans(), 1);
    assert_eq!(second.settle().unwrap().upto, 9);
    assert_eq!(ledger.poisoned(), None);
}

#[test]
fn how_far_some_tickets_would_reach_is_told_when_nobody_else_holds_their_spans() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9), (9, 19), (19, 29), (29, 39)]);
    let upto = |tickets: &[(u64, u32)]| {
        let tickets = tickets.iter().map(|(place, count)| ((stay(1), *place), *count)).collect();
        ledger.safe_with(&tickets, &Tickets::new()).map(|safe| safe[&stay(1)].upto)
    };
    assert_eq!(upto(&[]), Some(-1));
    assert_eq!(upto(&[(0, 1), (1, 1)]), Some(19));
    assert_eq!(upto(&[(1, 1)]), None, "the span before it is open");
    let letter = tickets[1].hold();
    assert_eq!(upto(&[(0, 1), (1, 1)]), None, "a dead letter of it is not durable");
    assert_eq!(letter.settle(), None);
    // A span of which no row was left reaches on by itself.
    assert_eq!(tickets.remove(2).settle(), None);
    assert_eq!(upto(&[(0, 1), (1, 1)]), Some(29));
    tickets.remove(0).settle();
    assert_eq!(upto(&[(1, 1)]), Some(29), "places count from the first span of the stay");
    let gone = [((stay(2), 0), 1)].into_iter().collect();
    assert_eq!(ledger.safe_with(&gone, &Tickets::new()), None, "a stay that has ended reaches nowhere");
    tickets.into_iter().for_each(Ticket::forget);
}

#[test]
fn further_tickets_reach_as_far_as_they_can() {
    let (ledger, tickets) = ledger_with(&[(-1, 9), (9, 19), (19, 29), (29, 39)]);
    let of = |tickets: &[(u64, u32)]| -> Tickets {
        tickets.iter().map(|(place, count)| ((stay(1), *place), *count)).collect()
    };
    let reach = |tickets: &[(u64, u32)], further: &[(u64, u32)]| {
        ledger.safe_with(&of(tickets), &of(further)).map(|safe| (safe[&stay(1)].upto, safe[&stay(1)].places))
    };
    let letter = tickets[1].hold();
    assert_eq!(reach(&[(0, 1), (1, 1)], &[(1, 1)]), Some((19, 2)), "a span with rows and a letter");
    assert_eq!(reach(&[(0, 1)], &[(1, 1), (2, 1)]), Some((9, 1)), "letters behind an open span wait");
    assert_eq!(reach(&[], &[(0, 1)]), Some((9, 1)), "letters alone");
    assert_eq!(reach(&[(1, 1)], &[(1, 1)]), None, "an epoch behind an open span is not reached");
    letter.forget();
    tickets.into_iter().for_each(Ticket::forget);
}

#[test]
fn a_dropped_ticket_poisons_its_span_and_stops_the_watermark() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9), (9, 19)]);
    drop(tickets.remove(0));
    assert_eq!(tickets.remove(0).settle(), None);
    assert_eq!(ledger.poisoned(), Some(span(1, -1, 9)));
    assert_eq!(ledger.watermark(&stay(1)).unwrap().upto, -1);
}

#[test]
fn a_panicked_thread_poisons_what_it_carried() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9)]);
    let ticket = tickets.remove(0);
    let thread = std::thread::spawn(move || {
        let _carried = ticket;
        panic!("as a plugin host might");
    });
    assert!(thread.join().is_err());
    assert_eq!(ledger.poisoned(), Some(span(1, -1, 9)));
}

#[test]
fn a_settle_after_the_stay_ended_moves_nothing() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9)]);
    assert_eq!(ledger.end(&stay(1)).unwrap().watermark.upto, -1);
    ledger.begin(stay(2), -1);
    assert_eq!(tickets.remove(0).settle(), None);
    assert_eq!(ledger.progress(), []);
    assert_eq!(ledger.watermark(&stay(2)).unwrap().upto, -1);
    assert!(ledger.open(&span(1, 9, 19)).is_none());
}

#[test]
fn a_forgotten_ticket_stops_the_watermark_but_poisons_nothing() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9), (9, 19)]);
    assert!(!ledger.is_quiet(&stay(1)));
    tickets.remove(0).forget();
    assert_eq!(tickets.remove(0).settle(), None);
    assert!(ledger.is_quiet(&stay(1)));
    assert_eq!(ledger.poisoned(), None);
    assert_eq!(ledger.end(&stay(1)).unwrap().watermark.upto, -1);
}

#[test]
fn a_ticket_dropped_after_the_stay_ended_poisons_nothing() {
    let (ledger, tickets) = ledger_with(&[(-1, 9)]);
    ledger.end(&stay(1));
    drop(tickets);
    assert_eq!(ledger.poisoned(), None);
}

#[test]
#[should_panic(expected = "does not follow")]
fn a_gap_between_spans_is_refused() {
    let (ledger, _tickets) = ledger_with(&[(-1, 9)]);
    let _ = ledger.open(&span(1, 10, 19));
}

proptest! {
    /// Against the definition: the watermark is the end of the longest settled prefix.
    #[test]
    fn the_watermark_is_the_longest_settled_prefix(
        lengths in prop::collection::vec(1_i64..50, 1..40),
        holds in prop::collection::vec(0_usize..3, 40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        let ledger = Ledger::new();
        ledger.begin(stay(1), -1);
        let mut ends = Vec::new();
        let mut left = Vec::new();
        let mut tickets = Vec::new();
        let mut after = -1;
        for (index, length) in lengths.iter().enumerate() {
            let ticket = ledger.open(&span(1, after, after + length)).unwrap();
            after += length;
            ends.push(after);
            left.push(holds[index] + 1);
            tickets.extend((0..holds[index]).map(|_| (index, ticket.hold())).collect::<Vec<_>>());
            tickets.push((index, ticket));
        }
        for choice in order {
            if tickets.is_empty() {
                break;
            }
            let (index, ticket) = tickets.swap_remove(choice.index(tickets.len()));
            left[index] -= 1;
            let _ = ticket.settle();
            let settled = left.iter().take_while(|left| **left == 0).count();
            let expected = if settled == 0 { -1 } else { ends[settled - 1] };
            prop_assert_eq!(ledger.watermark(&stay(1)).unwrap().upto, expected);
        }
        tickets.into_iter().for_each(|(_, ticket)| ticket.forget());
    }
}

#[test]
fn a_span_that_was_given_up_is_waited_for_by_nobody() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9), (9, 19)]);
    tickets.remove(0).forget();
    assert_eq!(ledger.open_spans(), 1);
    assert_eq!(tickets.remove(0).settle(), None);
    assert_eq!(ledger.open_spans(), 0);
    assert_eq!(ledger.watermark(&stay(1)).unwrap().upto, -1);
}

#[test]
fn rows_that_are_durable_behind_the_watermark_would_come_twice() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9), (9, 19), (19, 29)]);
    let held = tickets[0].hold();
    assert_eq!(tickets[2].hold().settle_kept(1), None);
    assert_eq!(tickets[2].hold().settle_dropped(1), None);
    assert!(!ledger.would_repeat(&stay(1)), "a letter is no row");
    assert_eq!(held.settle_loaded(3), None);
    assert!(ledger.would_repeat(&stay(1)), "the other rows of its span are not durable");
    assert_eq!(tickets.remove(0).settle_loaded(7).unwrap().upto, 9);
    assert!(!ledger.would_repeat(&stay(1)), "the watermark has passed them");
    assert_eq!(tickets.remove(1).settle_loaded(0), None);
    assert!(ledger.would_repeat(&stay(1)), "rows of a record that counts elsewhere");
    tickets.into_iter().for_each(Ticket::forget);
    assert!(ledger.would_repeat(&stay(1)));
    ledger.end(&stay(1));
    assert!(!ledger.would_repeat(&stay(1)));
}

#[test]
fn what_is_behind_a_span_that_was_given_up_comes_again() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9), (9, 19), (19, 29), (29, 39)]);
    let other = tickets[1].hold();
    assert_eq!(ledger.lost(), []);
    tickets.remove(1).forget();
    let comes_again: Vec<bool> = tickets.iter().map(Ticket::comes_again).collect();
    assert_eq!((comes_again, other.comes_again()), (vec![false, true, true], true));
    assert_eq!(tickets.remove(0).settle().unwrap().upto, 9);
    assert!(tickets[0].comes_again(), "places count from the first span of the stay");
    assert_eq!(ledger.lost(), [span(1, 9, 19)]);
    ledger.end(&stay(1));
    assert!(tickets[0].comes_again() && ledger.lost().is_empty());
    tickets.into_iter().chain([other]).for_each(Ticket::forget);
}

#[test]
fn a_ticket_knows_that_its_stay_has_ended() {
    let (ledger, mut tickets) = ledger_with(&[(-1, 9), (9, 19)]);
    let second = tickets.remove(1);
    assert_eq!((second.place(), second.has_ended()), (1, false));
    let _ = ledger.end(&stay(1));
    ledger.begin(stay(2), -1);
    assert!(second.has_ended());
}
