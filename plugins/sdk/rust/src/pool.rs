//! The component's allocator: free lists by size in front of the standard one.
//!
//! A transform asks for and gives back the same few small sizes for every record (a string here, a vector there), for
//! which a general allocator with its headers, coalescing and bins does far too much. Here a small block comes from a
//! list of free blocks of its size and goes back there: a handful of instructions each, no search and no header.
//! What is larger than [`SMALL_BYTES_MAX`] (the columns themselves) goes to the standard allocator.
//!
//! An arena that is reset after each call would be a few instructions cheaper still, and wrong as soon as a plugin
//! keeps something from one call to the next. Here nothing is ever taken back that was not freed, so there is nothing
//! for a plugin to obey.
//!
//! Memory that was once used for one size stays with that size. It is bounded by the largest amount that was ever in use of
//! each size at once, and Tidemill replaces instances that have grown.
//!
//! # Why it is sound
//!
//! - A block belongs to its class by nothing but its layout, and `dealloc` and `realloc` are given the layout that the
//!   block was allocated with. So a block returns to the list of the size that it has.
//! - Every block of class `c` is `c * 16` bytes long and aligned to 16, which covers every layout of that class;
//!   stricter alignments are not small.
//! - The link to the next free block lies in the block's own first bytes. It is written after the block was given back
//!   and read before it is given out again: never while somebody else owns those bytes.
//! - The lists are changed without a lock: a component has one thread. Compiling for wasm with threads is refused.
#![expect(unsafe_code, reason = "an allocator hands out addresses; each use says why it is right")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::{self, NonNull};

#[cfg(all(target_family = "wasm", target_feature = "atomics"))]
compile_error!("the feature `pool` of tidemill-sdk is for components with one thread");

#[cfg(all(target_family = "wasm", feature = "pool"))]
#[global_allocator]
static POOL: Pool<std::alloc::System> = Pool::new(std::alloc::System);

/// The step between two classes, and the alignment of every block.
const STEP_BYTES: usize = 16;
/// The largest block that is kept in lists.
const SMALL_BYTES_MAX: usize = 1024;
const CLASSES: usize = SMALL_BYTES_MAX / STEP_BYTES + 1;
/// How much is asked of the standard allocator at once, to be cut into blocks.
const SLAB_BYTES: usize = 32 * 1024;

/// What lies in a block while it is free.
struct Free {
    next: *mut Free,
}

struct Lists {
    /// The first free block of each class.
    free: [*mut Free; CLASSES],
    /// The rest of the newest slab, which has not been cut yet.
    slab: *mut u8,
    slab_bytes: usize,
}

/// Small blocks in front of the allocator `S`.
struct Pool<S> {
    lists: UnsafeCell<Lists>,
    system: S,
}

// SAFETY: a component without the atomics feature, which is refused above, has one thread: there is nobody to share with.
#[cfg(target_family = "wasm")]
unsafe impl<S> Sync for Pool<S> {}

impl<S: GlobalAlloc> Pool<S> {
    const fn new(system: S) -> Self {
        let lists = Lists { free: [ptr::null_mut(); CLASSES], slab: ptr::null_mut(), slab_bytes: 0 };
        Self { lists: UnsafeCell::new(lists), system }
    }

    /// The class of a layout, if it is small.
    #[inline]
    fn class(layout: Layout) -> Option<usize> {
        let small = layout.size() <= SMALL_BYTES_MAX && layout.align() <= STEP_BYTES;
        small.then(|| layout.size().div_ceil(STEP_BYTES))
    }

    /// Cuts a block from the slab, of which a new one is taken when it is used up. What is left of the old one is lost: less
    /// than one block in thirty-two.
    #[cold]
    #[inline(never)]
    fn cut(&self, class: usize) -> *mut u8 {
        let bytes = class * STEP_BYTES;
        // SAFETY: one thread, and no other reference into the lists is alive: `alloc` holds none when it calls this.
        let lists = unsafe { &mut *self.lists.get() };
        if lists.slab_bytes < bytes {
            // SAFETY: size and alignment are constants, not zero, and the alignment is a power of two.
            let slab = unsafe {
                let layout = Layout::from_size_align_unchecked(SLAB_BYTES, STEP_BYTES);
                self.system.alloc(layout)
            };
            if slab.is_null() {
                return ptr::null_mut();
            }
            lists.slab = slab;
            lists.slab_bytes = SLAB_BYTES;
        }
        let block = lists.slab;
        // SAFETY: `bytes` are left in the slab, so that the end is inside of it or one past it.
        lists.slab = unsafe { lists.slab.add(bytes) };
        lists.slab_bytes -= bytes;
        block
    }
}

// SAFETY: see "Why it is sound" above: blocks are disjoint, large and aligned enough for their layout, and stay where they are
// until they are given back with that layout.
unsafe impl<S: GlobalAlloc> GlobalAlloc for Pool<S> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = Self::class(layout) else {
            // SAFETY: the caller's promise about the layout is passed on.
            return unsafe { self.system.alloc(layout) };
        };
        // SAFETY: one thread; the reference ends with this block.
        let head = unsafe { &mut (*self.lists.get()).free[class] };
        match NonNull::new(*head) {
            Some(block) => {
                // SAFETY: the block is free, so that its first bytes hold the link that `dealloc` wrote.
                *head = unsafe { block.as_ref().next };
                block.as_ptr().cast()
            }
            None => self.cut(class),
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(class) = Self::class(layout) else {
            // SAFETY: a large block came from the standard allocator with this layout.
            return unsafe { self.system.dealloc(block, layout) };
        };
        let block = block.cast::<Free>();
        // SAFETY: one thread. The block is at least one step long, aligned to it, and the caller has given it up.
        unsafe {
            let head = &mut (*self.lists.get()).free[class];
            block.write(Free { next: *head });
            *head = block;
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        // SAFETY: the caller promises that `new_bytes`, rounded up to the alignment, does not overflow.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_bytes, layout.align()) };
        match (Self::class(layout), Self::class(new_layout)) {
            (Some(old), Some(new)) if old == new => block,
            // SAFETY: the block came from the standard allocator, and the new size would go there, too.
            (None, None) => unsafe { self.system.realloc(block, layout, new_bytes) },
            // SAFETY: the new block is distinct from the old one, which is given back after what both can hold
            // has been copied.
            (Some(_) | None, Some(_) | None) => unsafe {
                let moved = self.alloc(new_layout);
                if !moved.is_null() {
                    ptr::copy_nonoverlapping(block, moved, layout.size().min(new_bytes));
                    self.dealloc(block, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;
    use std::collections::BTreeMap;

    /// A block with the byte that fills it.
    struct Block {
        address: *mut u8,
        layout: Layout,
        fill: u8,
    }

    impl Block {
        fn check(&self) {
            assert_eq!(self.address.align_offset(self.layout.align()), 0);
            // SAFETY: the test owns the block, and has filled all of it.
            let bytes = unsafe { std::slice::from_raw_parts(self.address, self.layout.size()) };
            assert!(
                bytes.iter().all(|byte| *byte == self.fill),
                "a block of {:?} was overwritten",
                self.layout
            );
        }

        fn fill(&self) {
            // SAFETY: the test owns the block.
            unsafe { self.address.write_bytes(self.fill, self.layout.size()) };
        }
    }

    /// A generator good enough to vary sizes and order, and the same in every run.
    fn next(state: &mut u64) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 33) as usize
    }

    #[test]
    fn blocks_never_overlap_and_keep_their_bytes() {
        let pool = Pool::new(System);
        let mut blocks: BTreeMap<usize, Block> = BTreeMap::new();
        let mut state = 0x9E37_79B9_7F4A_7C15;
        for step in 0..20_000_usize {
            let bytes = 1 + next(&mut state) % 1500;
            let key = next(&mut state) % 300;
            let fill = (step % 251) as u8;
            match blocks.remove(&key) {
                None => {
                    let layout = Layout::from_size_align(bytes, 1 << (next(&mut state) % 7)).unwrap();
                    // SAFETY: the layout is not empty.
                    let block = Block { address: unsafe { pool.alloc(layout) }, layout, fill };
                    block.fill();
                    blocks.insert(key, block);
                }
                Some(block) if step % 3 == 0 => {
                    block.check();
                    let layout = Layout::from_size_align(bytes, block.layout.align()).unwrap();
                    // SAFETY: the block is alive and has this layout.
                    let address = unsafe { pool.realloc(block.address, block.layout, bytes) };
                    let kept = block.layout.size().min(bytes);
                    let head = Layout::from_size_align(kept, 1).unwrap();
                    Block { address, layout: head, fill: block.fill }.check();
                    let block = Block { address, layout, fill };
                    block.fill();
                    blocks.insert(key, block);
                }
                Some(block) => {
                    block.check();
                    // SAFETY: the block is alive and has this layout.
                    unsafe { pool.dealloc(block.address, block.layout) };
                }
            }
        }
        for block in blocks.values() {
            block.check();
        }
    }

    #[test]
    fn a_freed_block_is_given_out_again() {
        let pool = Pool::new(System);
        let (first, second) =
            (Layout::from_size_align(30, 8).unwrap(), Layout::from_size_align(17, 1).unwrap());
        // SAFETY: the layouts are not empty, and each block is given back with its own.
        unsafe {
            let block = pool.alloc(first);
            pool.dealloc(block, first);
            assert_eq!(pool.alloc(second), block);
        }
    }
}
