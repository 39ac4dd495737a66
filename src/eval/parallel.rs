//! Work on several threads that do not wait for each other within an operator of libtorch.

use std::panic::resume_unwind;
use std::thread;

use anyhow::Result;

/// Results of `work` for the inputs, in order. They are shared out among up to `threads` threads, in each of which
/// libtorch uses one: libtorch's own threads meet after every operator, which takes long when other processes need the
/// cores too.
/// # Errors
/// The first input's for which `work` fails.
pub fn in_parallel<I: Send, T: Send>(
    threads: usize,
    inputs: Vec<I>,
    work: impl Fn(I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let threads = threads.min(inputs.len());
    if threads < 2 {
        return inputs.into_iter().map(work).collect();
    }
    let (each, more) = (inputs.len() / threads, inputs.len() % threads);
    let mut inputs = inputs.into_iter();
    let work = &work;
    thread::scope(|scope| {
        let share = |thread: usize| {
            let own: Vec<I> = inputs.by_ref().take(each + usize::from(thread < more)).collect();
            scope.spawn(move || {
                native::set_threads(1);
                own.into_iter().map(work).collect::<Result<Vec<T>>>()
            })
        };
        let workers: Vec<_> = (0..threads).map(share).collect();
        let results = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        Ok(results.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_the_first_failure_is_told() {
        for threads in [1, 2, 3, 9] {
            let squares = in_parallel(threads, (0..7).collect(), |i: i64| Ok(i * i)).expect("squares");
            assert_eq!(squares, [0, 1, 4, 9, 16, 25, 36]);
            let odd = in_parallel(threads, (0..7).collect(), |i: i64| match i % 2 {
                0 => Ok(i),
                _ => anyhow::bail!("odd {i}"),
            });
            assert_eq!(odd.expect_err("odd numbers").to_string(), "odd 1");
            assert!(in_parallel(threads, Vec::new(), |i: i64| Ok(i)).expect("nothing").is_empty());
        }
    }
}
