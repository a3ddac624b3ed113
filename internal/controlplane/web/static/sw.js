// Keeps the static files of this version, so that pages are drawn at once and
// their looks survive a moment without the server. The server puts DIR and
// FILES before this text. Nothing else is ever answered or stored here: what
// waits for a decision must not come from a cache.
//
// Addresses name their content, so an answer is right for ever. The version
// before stays as well, for tabs that are still open.
const PREFIX = 'lpmos-static-'
const CACHE = PREFIX + DIR.split('/').at(-1)
const KEPT = 2

addEventListener('install', (e) => e.waitUntil(install()))
addEventListener('activate', (e) => e.waitUntil(activate()))
addEventListener('fetch', (e) => {
  const { origin, pathname, search } = new URL(e.request.url)
  if (e.request.method !== 'GET' || origin !== location.origin || search || !pathname.startsWith('/static/')) return
  e.respondWith(answer(e.request, pathname))
})

async function install() {
  const cache = await caches.open(CACHE)
  await cache.addAll(FILES.map((name) => `${DIR}/${name}`))
  await skipWaiting()
}

async function activate() {
  const others = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== CACHE)
  await Promise.all(others.slice(0, Math.max(0, others.length - KEPT + 1)).map((name) => caches.delete(name)))
  await clients.claim()
}

async function answer(request, path) {
  const kept = await caches.match(path)
  if (kept) return kept
  const fresh = await fetch(request)
  if (fresh.status === 200 && path.startsWith(`${DIR}/`)) (await caches.open(CACHE)).put(path, fresh.clone())
  return fresh
}
