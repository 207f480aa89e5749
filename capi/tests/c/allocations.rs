//! The C interface allocates nothing after the first prompt and step either.

use puna_c::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counting.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

pub fn steps_and_prompts_from_c_allocate_nothing() {
    // SAFETY: handles come from the library and are freed once, at the end; every pointer is to a
    // local that outlives its call.
    unsafe {
        let mut load = std::mem::zeroed::<PunaLoadOptions>();
        puna_load_options_init(&mut load);
        load.threads = 2;
        let mut model = null_mut();
        assert_eq!(puna_model_load(c"builtin".as_ptr(), &load, &mut model), Status::Ok);
        let mut options = std::mem::zeroed::<PunaSessionOptions>();
        puna_session_options_init(&mut options);
        let no_end = [0u32; 0];
        (options.ctx, options.end_ids, options.n_end_ids) = (400, no_end.as_ptr(), 0);
        (options.temperature, options.top_k, options.top_p) = (0.9, 50, 0.95);
        options.repetition_penalty = 1.1;
        let mut sessions = [null_mut(), null_mut()];
        let ids: Vec<u32> = (3..60).collect();
        for session in &mut sessions {
            assert_eq!(puna_session_new(model, &options, session), Status::Ok);
            assert_eq!(puna_session_prefill(*session, ids.as_ptr(), ids.len()), Status::Ok);
        }
        let (mut id, mut n, mut logits) = (0, 0, null());
        let mut round = |steps: usize| {
            let first = sessions[0];
            for _ in 0..steps {
                assert_eq!(puna_session_step(first, &mut id, null_mut()), Status::Ok);
                assert_eq!(puna_session_step_all(sessions.as_mut_ptr(), 2, &mut n), Status::Ok);
                assert_eq!(n, 2);
            }
            assert_eq!(puna_session_logits(first, &mut logits, &mut n), Status::Ok);
            assert_eq!(puna_session_prompt(first, ids[7..].as_ptr(), 40, &mut n), Status::Ok);
            assert_eq!(puna_session_truncate(sessions[1], 20), Status::Ok);
        };
        round(2);
        let before = COUNT.load(Ordering::SeqCst);
        assert!(before > 0, "what counts nothing proves nothing");
        round(100);
        round(20);
        let after = COUNT.load(Ordering::SeqCst);
        for session in sessions {
            puna_session_free(session);
        }
        puna_model_free(model);
        assert_eq!(after - before, 0);
    }
}
