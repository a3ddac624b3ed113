import { TaskElement } from './element.js'
import { amount, left, rounded, speed } from './format.js'
import { STALE_AFTER } from './stages.js'
import { t } from './words.js'

/**
 * One figure of a running install in a table: bytes, speed, or the time left.
 * Where earlier runs say when it will be done, "until" does.
 */
class TaskFigure extends TaskElement {
  static types = ['progress']
  #timer = 0

  draw({ details }) {
    const moving = details?.bytes_per_second > 0
    switch (this.getAttribute('figure')) {
      case 'bytes': this.textContent = amount(details); return
      case 'speed': this.textContent = moving ? speed(details.bytes_per_second) : '–'; break
      default: {
        const until = Date.parse(this.getAttribute('until'))
        this.textContent = until > Date.now() ? rounded((until - Date.now()) / 1000) : left(details)
      }
    }
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => { this.textContent = t('unknown') }, STALE_AFTER)
  }
}
customElements.define('task-figure', TaskFigure)
