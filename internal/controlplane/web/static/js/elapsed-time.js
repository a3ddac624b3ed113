import { age } from './format.js'

const EVERY = 10_000

/** How long ago something was, kept up to date. */
class ElapsedTime extends HTMLElement {
  static observedAttributes = ['since']
  #timer = 0

  connectedCallback() {
    this.#draw()
    this.#timer = setInterval(() => this.#draw(), EVERY)
  }

  attributeChangedCallback() { this.#draw() }

  disconnectedCallback() { clearInterval(this.#timer) }

  #draw() {
    const since = Date.parse(this.getAttribute('since'))
    if (Number.isNaN(since)) return
    const text = age(Date.now() - since)
    if (this.textContent !== text) this.textContent = text
  }
}
customElements.define('elapsed-time', ElapsedTime)
