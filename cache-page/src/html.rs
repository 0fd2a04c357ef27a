//! The page as HTML. Everything that is not written here goes through [`Text`].

mod chart;
mod one;
mod overview;
mod text;

use std::fmt::{self, Display, Write};

use self::text::Text;
pub(crate) use self::{one::one, overview::overview};
use crate::{PageBuilder, look::Look};

/// What a form has brought about.
pub(crate) enum Done<'a> {
    Nothing,
    Looked { key: String, look: Look },
    Invalidated { confirmed: bool },
    Refused { error: &'a str },
}

/// A whole page around `body`.
fn frame(options: &PageBuilder, title: &str, way: &[(&str, &str)], body: impl Display) -> String {
    let path = Text(&options.path);
    let mut page = String::with_capacity(16 << 10);
    let links = Way(way);
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<link rel=\"stylesheet\" href=\"{path}/page.css\">\n\
         <script src=\"{path}/page.js\" defer></script>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the figures</a>\n\
         <header>\n<nav aria-label=\"Where you are\">{links}</nav>\n\
         <p class=\"refresh\"><span id=\"state\" role=\"status\"></span> \
         <button type=\"button\" id=\"pause\" aria-pressed=\"false\" hidden>Pause</button></p>\n</header>\n\
         <main id=\"main\" tabindex=\"-1\">\n{body}</main>\n</body>\n</html>\n",
        title = Text(title),
    );
    page
}

/// Links from the overview down to here; the last is here.
struct Way<'a>(&'a [(&'a str, &'a str)]);

impl Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<ol>")?;
        let Some(((here, _), above)) = self.0.split_last() else { return Ok(()) };
        for (name, to) in above {
            write!(f, "<li><a href=\"{}\">{}</a></li>", Text(to), Text(name))?;
        }
        write!(f, "<li aria-current=\"page\">{}</li></ol>", Text(here))
    }
}

fn home(options: &PageBuilder) -> &str {
    if options.path.is_empty() { "/" } else { &options.path }
}

/// An address for which there is nothing.
pub(crate) fn refused(options: &PageBuilder, error: &str) -> String {
    let way = [(&*options.title, home(options)), ("Not found", "")];
    frame(options, "Not found", &way, format_args!("<h1>Not found</h1>\n<p>{}</p>\n", Text(error)))
}

/// Writes by a function.
struct With<F>(F);

impl<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result> Display for With<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)(f)
    }
}
