import { setIcon } from './icons.js'
import { live } from './live.js'
import { t } from './words.js'

/** Whether a region is online. */
class RegionStatus extends HTMLElement {
  #stop = null

  connectedCallback() {
    this.#stop = new AbortController()
    live.addEventListener('region', (e) => this.#draw(e.detail), { signal: this.#stop.signal })
  }

  disconnectedCallback() { this.#stop?.abort() }

  #draw({ region_id: id, status }) {
    if (id !== this.getAttribute('region') || status === this.dataset.status) return
    this.dataset.status = status === 'online' ? 'online' : 'offline'
    setIcon(this, this.dataset.status)
    this.querySelector('span').textContent = status === 'online' ? t('Online') : t('Offline')
  }
}
customElements.define('region-status', RegionStatus)
