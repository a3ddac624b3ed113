/**
 * The "as of 14:26" mark of figures that may have stopped: it appears when
 * nothing was heard for a while and disappears with the next message.
 */
import { timeElement } from './format.js'
import { STALE_AFTER } from './stages.js'
import { t } from './words.js'

export class Stale {
  #el
  #heardAt = Date.now()
  #timer
  #onStale

  /** el is the mark; onStale is called when the figures become old. */
  constructor(el, onStale = () => {}) {
    this.#el = el
    this.#onStale = onStale
    this.#timer = setInterval(() => this.#look(), 1_000)
  }

  /** Something was heard just now. */
  fresh() {
    this.#heardAt = Date.now()
    if (this.#el) this.#el.hidden = true
  }

  stop() { clearInterval(this.#timer) }

  #look() {
    if (!this.#el?.hidden || Date.now() - this.#heardAt < STALE_AFTER) return
    this.#el.querySelector('time')?.remove()
    const text = this.#el.querySelector('span')
    text.textContent = t('as of ')
    text.append(timeElement(new Date(this.#heardAt), 'seconds'))
    this.#el.hidden = false
    this.#onStale()
  }
}
