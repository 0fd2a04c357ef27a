//! The standard variables.

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    propagation::{TextMapCompositePropagator, TextMapPropagator},
};
use opentelemetry_sdk::{
    propagation::{BaggagePropagator, TraceContextPropagator},
    trace::Sampler,
};
use percent_encoding::percent_decode_str;

use super::SetupError;

type LookUp = dyn Fn(&str) -> Option<String> + Send;

/// Where variables come from.
pub(crate) struct Env(Box<LookUp>);

/// Where metrics go.
pub(crate) struct MetricsTo {
    pub(crate) otlp: bool,
    pub(crate) prometheus: bool,
}

impl Env {
    pub(crate) fn process() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    pub(crate) fn of(look_up: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        Self(Box::new(look_up))
    }

    /// An empty variable is none, as the specification has it.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub(crate) fn is_disabled(&self) -> Result<bool, SetupError> {
        const NAME: &str = "OTEL_SDK_DISABLED";
        match self.get(NAME).map(|value| value.to_lowercase()).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(SetupError::new(NAME, other, "use true or false")),
        }
    }

    /// Who this is, as far as variables say.
    pub(crate) fn resource(&self) -> Result<Vec<KeyValue>, SetupError> {
        const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let said = self.get(NAME).unwrap_or_default();
        let mut all = Vec::new();
        // What parts them is percent-encoded within them, as the specification has it.
        let decoded = |text: &str| Some(percent_decode_str(text.trim()).decode_utf8().ok()?.into_owned());
        for pair in said.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').and_then(|(name, value)| decoded(name).zip(decoded(value))) {
                Some((name, value)) if !name.is_empty() => all.push(KeyValue::new(name, value)),
                _ => {
                    let fix = format_args!("use name=value, with commas between, which `{pair}` is not");
                    return Err(SetupError::new(NAME, &said, fix));
                }
            }
        }
        // The last one counts.
        all.extend(self.get("OTEL_SERVICE_NAME").map(|name| KeyValue::new("service.name", name)));
        Ok(all)
    }

    pub(crate) fn traces(&self) -> Result<bool, SetupError> {
        const NAME: &str = "OTEL_TRACES_EXPORTER";
        match self.get(NAME).as_deref() {
            None | Some("otlp") => Ok(true),
            Some("none") => Ok(false),
            Some(other) => Err(SetupError::new(NAME, other, "use otlp or none")),
        }
    }

    pub(crate) fn metrics_to(&self, wants_page: bool) -> Result<MetricsTo, SetupError> {
        const NAME: &str = "OTEL_METRICS_EXPORTER";
        let Some(words) = self.get(NAME) else {
            return Ok(MetricsTo { otlp: !wants_page, prometheus: wants_page });
        };
        let mut to = MetricsTo { otlp: false, prometheus: wants_page };
        for word in words.split(',') {
            match word.trim() {
                "otlp" => to.otlp = true,
                "prometheus" => to.prometheus = true,
                "none" => {}
                other => return Err(SetupError::new(NAME, other, "use otlp, prometheus or none")),
            }
        }
        Ok(to)
    }

    /// Where the page is: as set in code, else as the variables say.
    pub(crate) fn page(&self, set: Option<SocketAddr>) -> Result<SocketAddr, SetupError> {
        const HOST: &str = "OTEL_EXPORTER_PROMETHEUS_HOST";
        if let Some(address) = set {
            return Ok(address);
        }
        let host = self.get(HOST).unwrap_or_else(|| "localhost".to_owned());
        let port: u16 = self.number("OTEL_EXPORTER_PROMETHEUS_PORT", "a port number")?.unwrap_or(9464);
        let mut all = (host.as_str(), port).to_socket_addrs().into_iter().flatten();
        all.next()
            .ok_or_else(|| SetupError::new(HOST, &host, "it has no address; use a host's name or its IP"))
    }

    pub(crate) fn interval(&self) -> Result<Duration, SetupError> {
        const NAME: &str = "OTEL_METRIC_EXPORT_INTERVAL";
        match self.number::<u64>(NAME, "milliseconds, above zero")? {
            Some(0) => Err(SetupError::new(NAME, 0, "use milliseconds, above zero")),
            Some(ms) => Ok(Duration::from_millis(ms)),
            None => Ok(Duration::from_secs(60)),
        }
    }

    /// What is recorded: as set in code, else as the variables say, else everything; of traces that began elsewhere what was
    /// decided there.
    pub(crate) fn sampler(&self, set: Option<f64>) -> Result<Sampler, SetupError> {
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        const ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
        let by_parent = |root| Sampler::ParentBased(Box::new(root));
        if let Some(share) = set {
            return match (0.0..=1.0).contains(&share) {
                true => Ok(by_parent(Sampler::TraceIdRatioBased(share))),
                false => Err(SetupError::new("Setup::sample", share, "use a share, 0 to 1")),
            };
        }
        let share = || -> Result<f64, SetupError> {
            let share = self.number::<f64>(ARG, "a share, 0 to 1")?.unwrap_or(1.0);
            match (0.0..=1.0).contains(&share) {
                true => Ok(share),
                false => Err(SetupError::new(ARG, share, "use a share, 0 to 1")),
            }
        };
        Ok(match self.get(NAME).as_deref() {
            None | Some("parentbased_always_on") => by_parent(Sampler::AlwaysOn),
            Some("parentbased_always_off") => by_parent(Sampler::AlwaysOff),
            Some("parentbased_traceidratio") => by_parent(Sampler::TraceIdRatioBased(share()?)),
            Some("always_on") => Sampler::AlwaysOn,
            Some("always_off") => Sampler::AlwaysOff,
            Some("traceidratio") => Sampler::TraceIdRatioBased(share()?),
            Some(other) => {
                let known = "always_on, always_off, traceidratio, or one of them after parentbased_";
                return Err(SetupError::new(NAME, other, format_args!("use {known}")));
            }
        })
    }

    /// How a trace is carried to other services and from them: by default its context, and baggage.
    pub(crate) fn propagator(&self) -> Result<TextMapCompositePropagator, SetupError> {
        const NAME: &str = "OTEL_PROPAGATORS";
        let said = self.get(NAME).unwrap_or_else(|| "tracecontext,baggage".to_owned());
        let mut words: Vec<&str> = said.split(',').map(str::trim).collect();
        words.sort_unstable();
        // Each once, as the specification has it.
        words.dedup();
        let mut all: Vec<Box<dyn TextMapPropagator + Send + Sync>> = Vec::new();
        for word in &words {
            match *word {
                "tracecontext" => all.push(Box::new(TraceContextPropagator::new())),
                "baggage" => all.push(Box::new(BaggagePropagator::new())),
                "none" if words.len() == 1 => {}
                other => {
                    let fix = "use tracecontext, baggage, both with a comma between, or none";
                    return Err(SetupError::new(NAME, other, fix));
                }
            }
        }
        Ok(TextMapCompositePropagator::new(all))
    }

    fn number<N: std::str::FromStr>(&self, name: &str, what: &str) -> Result<Option<N>, SetupError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(SetupError::new(name, value, format_args!("use {what}"))),
        }
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_goes_on_as_the_variable_says() {
        for (said, fields) in [
            (None, &["baggage", "traceparent", "tracestate"][..]),
            (Some("tracecontext"), &["traceparent", "tracestate"]),
            (Some("baggage,tracecontext, baggage"), &["baggage", "traceparent", "tracestate"]),
            (Some("none"), &[]),
        ] {
            let env = Env::of(move |_| said.map(str::to_owned));
            let propagator = env.propagator().unwrap();
            let mut all: Vec<_> = propagator.fields().collect();
            all.sort_unstable();
            assert_eq!(all, fields, "{said:?}");
        }
    }
}
