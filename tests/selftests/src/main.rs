// SPDX-License-Identifier: GPL-2.0
//! Behaviour of AF_VSOCK sockets that the kernel's own vsock_test does not look at.
//!
//! Both ends of every connection are on this kernel. Each case runs in a process of its own, and
//! its name says what it shows. The output is KTAP, version 1.

mod cases;

use std::process::ExitCode;
use std::time::Duration;

use rvsock_selftests::{
    case, cases, ensure_eq, errno, fault, namespace, pattern, relay, runner, shortage, socket,
};

use case::{Case, Setup};

const USAGE: &str = "\
usage: rvsock-selftests [OPTION...] [CASE...]

Runs the named cases, or all of them.

  --list             print the names of the cases, and for those where Linux's C transports are
                     known to behave differently, after a tab, why
  --cid CID          connect to this CID, which must lead back to this kernel (default: 1, loopback)
  --module NAME      the module of the transport; after each case nobody may use it any more, and
                     some cases unload it
  --reload COMMAND   shell command that loads the module again
  --sites FILE       all calls of allocators in the module, FUNCTION+0xOFFSET in a line each
  --relay PORT       where CID is another machine's, and `--be-relay PORT` runs there
  --be-relay PORT    run no cases, but lead back where they came from, until killed, connections of
                     programs that were told of this port
  --long             include what takes minutes
  --timeout SECONDS  end a case that takes longer (default: 120)";

struct Arguments {
    list: bool,
    timeout: Duration,
    setup: Setup,
    names: Vec<String>,
    be_relay: Option<u32>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments {
        list: false,
        timeout: Duration::from_secs(120),
        setup: Setup::default(),
        names: Vec::new(),
        be_relay: None,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--list" => arguments.list = true,
            "--long" => arguments.setup.long = true,
            "--cid" => arguments.setup.cid = number(&value()?)?,
            "--timeout" => arguments.timeout = Duration::from_secs(number(&value()?)?.into()),
            "--module" => arguments.setup.module = Some(value()?),
            "--sites" => arguments.setup.sites = Some(value()?.into()),
            "--relay" => arguments.setup.relay = Some(number(&value()?)?),
            "--be-relay" => arguments.be_relay = Some(number(&value()?)?),
            "--reload" => arguments.setup.reload = Some(value()?),
            option if option.starts_with('-') => return Err(format!("unknown option {option}")),
            name => arguments.names.push(name.to_owned()),
        }
    }
    Ok(arguments)
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

/// The cases with these names, in that order; all cases if there are no names.
fn select(names: &[String]) -> Result<Vec<&'static Case>, String> {
    let all = || cases::ALL.iter().copied().flatten();
    if names.is_empty() {
        return Ok(all().collect());
    }
    let find = |name: &String| {
        all()
            .find(|case| case.name == name)
            .ok_or(format!("there is no case {name}"))
    };
    names.iter().map(find).collect()
}

fn list(cases: &[&Case]) {
    for case in cases {
        match case.differs_in_c {
            Some(reason) => println!("{}\t{reason}", case.name),
            None => println!("{}", case.name),
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let selected =
        parse(words.into_iter()).and_then(|arguments| Ok((select(&arguments.names)?, arguments)));
    let (selected, arguments) = match selected {
        Ok(selected) => selected,
        Err(message) => {
            eprintln!("rvsock-selftests: {message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if arguments.list {
        list(&selected);
        return ExitCode::SUCCESS;
    }
    if let Some(port) = arguments.be_relay {
        let Err(error) = relay::serve(port);
        eprintln!("rvsock-selftests: {error:#}");
        return ExitCode::FAILURE;
    }
    if runner::run_all(&selected, &arguments.setup, arguments.timeout) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
