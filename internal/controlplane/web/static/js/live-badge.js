import { age } from './format.js'
import { setIcon } from './icons.js'
import { live } from './live.js'
import { STALE_AFTER } from './stages.js'
import { t } from './words.js'

/** Says whether what is shown is alive: live, every 5 s, stale, or offline. */
class LiveBadge extends HTMLElement {
  #timer = 0
  #stop = null

  connectedCallback() {
    this.#stop = new AbortController()
    live.addEventListener('state', () => this.#draw(), { signal: this.#stop.signal })
    this.#timer = setInterval(() => this.#draw(), 1_000)
  }

  disconnectedCallback() {
    this.#stop?.abort()
    clearInterval(this.#timer)
  }

  #draw() {
    const silent = Date.now() - live.heardAt
    switch (live.state) {
      case 'live':
        // Only a running install promises a message every few seconds.
        if (silent > STALE_AFTER && document.querySelector('task-progress[data-live], task-run[data-status="installing"]')) {
          return this.#show('stale', 'clock', t('Stale since %s', age(silent)))
        }
        return this.#show('live', 'live', t('Live'))
      case 'polling':
        return this.#show('polling', 'clock', t('Every 5 s'))
      case 'lost': {
        const wait = live.retryAt - Date.now()
        return this.#show('lost', 'link-lost', wait > 1_000 ? t('Offline, again in %s', age(wait)) : t('Offline, trying'))
      }
    }
  }

  #show(state, symbol, text) {
    const span = this.querySelector('span')
    if (this.dataset.state !== state) {
      this.dataset.state = state
      setIcon(this, symbol)
      // A countdown must not be read out every second, only the change.
      this.setAttribute('aria-live', 'polite')
    } else if (span.textContent !== text) {
      this.setAttribute('aria-live', 'off')
    }
    if (span.textContent !== text) span.textContent = text
  }
}
customElements.define('live-badge', LiveBadge)
