import { count } from './format.js'
import { live } from './live.js'

/** How many tasks have a status. */
class StatusCount extends HTMLElement {
  #stop = null

  connectedCallback() {
    this.#stop = new AbortController()
    live.addEventListener('counts', (e) => {
      const n = e.detail.counts?.[this.getAttribute('status')] ?? 0
      this.textContent = count(n)
      if (this.closest('.rail')) this.hidden = n === 0
    }, { signal: this.#stop.signal })
  }

  disconnectedCallback() { this.#stop?.abort() }
}
customElements.define('status-count', StatusCount)
