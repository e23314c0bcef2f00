// SPDX-License-Identifier: GPL-2.0
//! Loads AF_VSOCK and measures what it does: both ends of every test of the benchmark.
//!
//! What counts as received is counted where it is received, within a window of time that starts
//! after a warm-up.

mod hold;
mod request;
mod server;
mod session;
mod socket;
mod test;

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;
use std::{env, io};
use test::{Plan, Test};

const USAGE: &str = "usage: rvsock-load serve PORT
       rvsock-load run CID PORT WARM_UP_MS TIME_MS TEST...
       rvsock-load hold CID PORT COUNT SIZE

serve   the passive end of all tests, on PORT and the two ports after it; runs until it is killed
run     runs tests against a server and prints one line of JSON for each
hold    opens COUNT connections, fills each with writes of SIZE bytes (0: leaves it empty) and
        keeps them until standard input ends

tests:  stream:SIZE:CONNECTIONS   bytes received per time
        bytes:SIZE:TOTAL          sends TOTAL bytes, whatever time that takes
        ping:SIZE                 round trips, one at a time
        connect                   connections opened and closed, one after the other";

fn parse<T: FromStr>(word: &str, name: &str) -> Result<T, String> {
    word.parse()
        .map_err(|_| format!("{name} is not a number: {word}"))
}

fn dispatch(arguments: &[&str]) -> Result<io::Result<()>, String> {
    match arguments {
        ["serve", port] => Ok(server::run(parse(port, "PORT")?)),
        ["run", cid, port, warm_up, time, names @ ..] if !names.is_empty() => {
            let plan = Plan {
                cid: parse(cid, "CID")?,
                port: parse(port, "PORT")?,
                warm_up: Duration::from_millis(parse(warm_up, "WARM_UP_MS")?),
                time: Duration::from_millis(parse(time, "TIME_MS")?),
            };
            let tests = names
                .iter()
                .map(|name| Ok((*name, name.parse()?)))
                .collect::<Result<Vec<_>, String>>()?;
            Ok(run(plan, &tests))
        }
        ["hold", cid, port, count, size] => Ok(hold::run(
            parse(cid, "CID")?,
            parse(port, "PORT")?,
            parse(count, "COUNT")?,
            parse(size, "SIZE")?,
        )),
        _ => Err(USAGE.into()),
    }
}

fn run(plan: Plan, tests: &[(&str, Test)]) -> io::Result<()> {
    for (name, test) in tests {
        let result = plan
            .run(*test)
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
        println!(r#"{{"test":"{name}",{result}}}"#);
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match dispatch(&words) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("rvsock-load: {error}");
            ExitCode::FAILURE
        }
        Err(usage) => {
            eprintln!("{usage}");
            ExitCode::from(2)
        }
    }
}
