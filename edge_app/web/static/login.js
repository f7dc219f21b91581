import { by, write } from "./page.js";

const form = by("login");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  write(by("wrong"), "");
  const headers = { "X-Edge-App": "1", "Content-Type": "application/json" };
  try {
    const response = await fetch("/login", {
      method: "POST",
      headers,
      body: JSON.stringify({ token: by("token").value }),
    });
    if (response.ok) {
      // Only ever back to a page of this station.
      const next = new URL(new URLSearchParams(location.search).get("next") ?? "/", location.origin);
      location.replace(next.origin === location.origin ? next.pathname : "/");
      return;
    }
    write(by("wrong"), (await response.json()).error);
  } catch {
    write(by("wrong"), "The station does not answer.");
  }
  button.disabled = false;
  by("token").select();
});
