// Keeps the figures current: fetches this page again every two seconds and replaces what is marked as live.
"use strict";

const every = 2000;
// A service that hangs says nothing at all.
const patience = 5000;
const state = document.getElementById("state");
const pause = document.getElementById("pause");
let isPaused = false;

async function refresh() {
    const answer = await fetch(location.pathname, {
        headers: { accept: "text/html" },
        signal: AbortSignal.timeout(patience),
    });
    if (!answer.ok) {
        throw new Error(`status ${answer.status}`);
    }
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-live]");
    const live = document.querySelector("[data-live]");
    if (!fresh || !live) {
        return;
    }
    // Whoever is in there with the keyboard stays where they are, and tables stay scrolled.
    const focused = live.contains(document.activeElement) ? document.activeElement.id : "";
    const scrolled = [...live.querySelectorAll(".wide")].map((wide) => [wide.id, wide.scrollLeft]);
    live.replaceWith(fresh);
    for (const [id, left] of scrolled) {
        const wide = document.getElementById(id);
        if (wide) {
            wide.scrollLeft = left;
        }
    }
    if (focused) {
        document.getElementById(focused)?.focus({ preventScroll: true });
    }
}

async function tick() {
    if (!isPaused && !document.hidden && String(getSelection()) === "") {
        try {
            await refresh();
            state.textContent = "";
        } catch {
            state.textContent = "The service does not answer; trying again.";
        }
    }
    setTimeout(tick, every);
}

if (document.querySelector("[data-live]")) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
        isPaused = !isPaused;
        pause.textContent = isPaused ? "Go on" : "Pause";
        pause.setAttribute("aria-pressed", String(isPaused));
    });
    setTimeout(tick, every);
}

for (const button of document.querySelectorAll("button.danger")) {
    button.addEventListener("click", (event) => {
        if (button.form.checkValidity() && !confirm(`${button.textContent}? It is gone at every level.`)) {
            event.preventDefault();
        }
    });
}
