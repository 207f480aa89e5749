//! Teams of own and of lent threads.

use super::*;

#[test]
fn every_member_runs_once_per_job() {
    for threads in [1, 2, 3, 5] {
        let team = Team::new(threads).unwrap();
        assert_eq!(team.len(), threads);
        let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..200 {
            team.run(&|member| {
                counts[member].fetch_add(1, Ordering::Relaxed);
            });
        }
        for count in &counts {
            assert_eq!(count.load(Ordering::Relaxed), 200);
        }
    }
}

#[test]
fn a_parked_team_wakes_up() {
    let team = Team::new(2).unwrap();
    for _ in 0..3 {
        thread::sleep(std::time::Duration::from_millis(20));
        let hits = AtomicUsize::new(0);
        team.run(&|_| {
            hits.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(hits.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn a_panic_of_a_worker_reaches_the_caller_and_the_team_lives_on() {
    let team = Team::new(3).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        team.run(&|member| assert_ne!(member, 2, "member two fails"));
    }));
    assert!(caught.is_err());
    team.run(&|_| {});
}

/// Counts the calls of each member in `jobs` jobs.
fn calls(team: &Team, jobs: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..team.len()).map(|_| AtomicUsize::new(0)).collect();
    for _ in 0..jobs {
        team.run(&|member| {
            counts[member].fetch_add(1, Ordering::Relaxed);
        });
    }
    counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
}

#[test]
fn lent_threads_work_until_the_team_goes_and_vacant_seats_are_filled() {
    let (team, mut seats) = Team::lent(&TeamOptions::threads(4)).unwrap();
    assert_eq!(calls(&team, 10), [10; 4], "nobody has sat down");
    drop(seats.pop());
    let lent: Vec<_> = seats.into_iter().map(|seat| thread::spawn(move || seat.work())).collect();
    for _ in 0..50 {
        assert_eq!(calls(&team, 20), [20; 4]);
        thread::yield_now();
    }
    drop(team);
    lent.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_team_without_spinning_works_and_has_its_name() {
    let options = TeamOptions {
        threads: 2,
        name: "tester".into(),
        spin: Duration::ZERO,
        ..TeamOptions::default()
    };
    let team = Team::with(&options).unwrap();
    assert_eq!(calls(&team, 100), [100; 2]);
    let name = Mutex::new(None);
    team.run(&|member| {
        if member == 1 {
            *name.lock().unwrap() = thread::current().name().map(str::to_owned);
        }
    });
    assert_eq!(name.into_inner().unwrap().as_deref(), Some("tester-1"));
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let refused = |options: TeamOptions| Team::with(&options).err().unwrap().to_string();
    let cores = TeamOptions { cores: Some(vec![0]), ..TeamOptions::threads(3) };
    assert!(refused(cores).contains("1 cores for the workers of a team of 3, wanted 2"));
    let name = TeamOptions { name: "a\0b".into(), ..TeamOptions::threads(2) };
    assert!(refused(name).contains("zero byte"));
    let far = TeamOptions { cores: Some(vec![1023]), ..TeamOptions::threads(2) };
    let outside = TeamOptions { cores: Some(vec![usize::MAX]), ..TeamOptions::threads(2) };
    for (options, core) in [(far, "core 1023"), (outside, "core 18446744073709551615")] {
        let why = refused(options);
        assert!(why.contains(core), "{why}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_worker_stays_on_its_core() {
    // A core that this process may use: the one that it runs on.
    // SAFETY: no arguments, no memory.
    let core = unsafe { libc::sched_getcpu() } as usize;
    let options = TeamOptions { cores: Some(vec![core]), ..TeamOptions::threads(2) };
    let team = Team::with(&options).unwrap();
    let seen = AtomicUsize::new(usize::MAX);
    team.run(&|member| {
        if member == 1 {
            // SAFETY: as above.
            seen.store(unsafe { libc::sched_getcpu() } as usize, Ordering::Relaxed);
        }
    });
    assert_eq!(seen.load(Ordering::Relaxed), core);
}

#[test]
fn parts_cover_everything_once_in_whole_grains() {
    for n in [0, 1, 15, 16, 17, 100, 257] {
        for grain in [1, 16, 32] {
            for members in [1, 2, 3, 7] {
                let mut next = 0;
                for index in 0..members {
                    let range = part(n, grain, index, members);
                    assert_eq!(range.start, next.min(n));
                    assert!(range.end == n || range.end.is_multiple_of(grain));
                    next = range.end;
                }
                assert_eq!(next, n);
            }
        }
    }
}
